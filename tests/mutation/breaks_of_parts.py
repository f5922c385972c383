"""Breaks of what is promised of a model that a `tp_plan` spreads over processes."""

from tests.mutation.mutant import Mutant

DEVICES = "citizen/test_devices.py"
LOSSES = f"{DEVICES}::test_two_processes_have_the_losses_of_one"

PARTS = (
    Mutant(
        "every process has the whole gradient of what is inserted",
        "lowering/parts.py",
        "return everywhere.redistribute(placements=[Shard(axis % value.dim())]).to_local()",
        "return value.chunk(2, axis)[everywhere.device_mesh.get_local_rank()]",
        f"{DEVICES}::test_processes_with_parts_of_the_weights_learn_the_same",
    ),
    Mutant(
        "a copy's forward by plan runs the copy, not the original",
        "copies.py",
        "            return MethodType(value.__func__, other)",
        "            return value",
        LOSSES,
    ),
    Mutant(
        "a method reads the whole weight",
        "lowering/lower.py",
        "as_whole(host), generator)",
        "host, generator)",
        LOSSES,
    ),
    Mutant(
        "what joins a weight is given the whole of it",
        "lowering/parts.py",
        "graph.call_function(whole_of, (graph.get_attr(name),))",
        "graph.get_attr(name)",
        LOSSES,
    ),
    Mutant(
        "the heads of all processes start at the words",
        "lowering/observing.py",
        "layout.spread is not None and layout.spread.weight is not None:",
        "layout.spread is None and layout.place is None:",
        f"{DEVICES}::test_prompts_start_at_the_words_of_a_spread_model",
    ),
    Mutant(
        "the digest of a spread weight is that of the whole",
        "digests.py",
        "parts_of(whole_of(tensor.detach()))",
        "parts_of(tensor.detach())",
        f"{DEVICES}::test_what_one_of_the_processes_saves_is_what_a_single_one_does",
    ),
    Mutant(
        "a merged weight is spread as the base's",
        "merging.py",
        "    tensor = spread_like(tensor, host.get_parameter(name))\n",
        "",
        f"{DEVICES}::test_a_spread_model_keeps_its_promises",
    ),
    Mutant(
        "what joins the norm of each head learns from all heads",
        "lowering/layouts.py",
        "    if isinstance(site.place, Whole) and matrix is None and holds_its_module(host):",
        "    if site.place is None:",
        f"{DEVICES}::test_a_spread_model_computes_what_a_whole_one_does",
    ),
    Mutant(
        "what would learn from one process's experts alone is refused",
        "lowering/layouts.py",
        "    if not holds_its_module(model.get_submodule(site.path)):",
        "    if matrix is None or not holds_its_module(model.get_submodule(site.path)):",
        f"{DEVICES}::test_places_of_which_a_process_has_other_parts_are_refused",
    ),
)
