"""Breaks of what is promised where weights are codes, or lie on several devices."""

from tests.mutation.mutant import Mutant

DEVICES = "citizen/test_devices.py"
ESTIMATING = "citizen/test_estimating.py"
QUANTISED = "citizen/test_quantised.py"

PLACES = (
    Mutant(
        "what stands beside codes is float32",
        "lowering/homes.py",
        "return torch.float64 if weight == torch.float64 else torch.float32",
        "return weight if weight.is_floating_point else torch.float32",
        f"{QUANTISED}::test_a_quantised_base_is_trained_beside",
    ),
    Mutant(
        "what stands beside codes takes and gives the type that flows",
        "lowering/wire.py",
        "if edit.casts and (args or like is not None):",
        "if False:",
        f"{QUANTISED}::test_a_quantised_base_is_trained_beside",
    ),
    Mutant(
        "a method that maps a quantised weight is refused when planned",
        "methods/_method.py",
        "if quantised and site.role in self.attaches",
        "if False and site.role in self.attaches",
        f"{QUANTISED}::test_a_method_that_maps_the_weight_is_refused_when_planned",
    ),
    Mutant(
        "merging dequantises only when asked",
        "merging.py",
        "            if not dequantise:",
        "            if False:",
        f"{QUANTISED}::test_merging_dequantises_only_when_asked",
    ),
    Mutant(
        "the size of a quantised base is that of the numbers that its codes stand for",
        "compiling.py",
        'graph.modules[""].size',
        "sum(parameter.numel() for parameter in model.parameters())",
        f"{QUANTISED}::test_the_places_are_those_of_the_plain_model",
    ),
    Mutant(
        "hooks around a forward find the rewritten one",
        "lowering/rewritten.py",
        "    hand_over(module, original, type(module))",
        "    pass",
        f"{DEVICES}::test_a_model_that_was_dispatched_can_be_compiled",
    ),
    Mutant(
        "a model whose weights are offloaded is refused",
        "compiling.py",
        "[*spread(model), *offloaded(model)]",
        "[*spread(model)]",
        f"{DEVICES}::test_a_model_that_is_offloaded_already_is_refused",
    ),
    Mutant(
        "a model that is spread over devices is refused",
        "compiling.py",
        "[*spread(model), *offloaded(model)]",
        "[*offloaded(model)]",
        f"{DEVICES}::test_a_model_that_is_sharded_already_is_refused",
    ),
    Mutant(
        "an estimate counts both states of AdamW",
        "estimating.py",
        "_STATES_OF_ADAMW = 2",
        "_STATES_OF_ADAMW = 1",
        f"{ESTIMATING}::test_the_bytes_are_those_of_the_formulas",
    ),
    Mutant(
        "each piece of memory that autograd saves is counted once",
        "activations.py",
        "            self.seen.add(memory)\n",
        "",
        f"{ESTIMATING}::test_the_peak_of_a_real_step_is_within_a_tenth_of_the_estimate",
    ),
)
