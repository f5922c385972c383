"""Breaks of what is promised while a model is trained: checkpoints, references, copies."""

from tests.mutation.mutant import COMPILING, Mutant

TRAINING = "citizen/test_training.py"
PLAIN = "citizen/test_training_checkpoints.py"
TRL = "citizen/test_training_trl.py"

CHECKPOINTS = (
    Mutant(
        "a checkpoint of another spec is refused, also where names and shapes agree",
        "saving/checkpoint.py",
        "    if theirs.plan != ours.plan:",
        "    if theirs.plan != theirs.plan:",
        f"{TRAINING}::test_a_checkpoint_of_another_spec_is_refused_and_nothing_is_changed",
    ),
    Mutant(
        "a checkpoint of another base is refused",
        "saving/checkpoint.py",
        "theirs.base.weights != digest_of_weights(compilation.weights_digest)",
        "theirs.base.weights != theirs.base.weights",
        f"{PLAIN}::test_a_state_of_something_else_is_refused",
    ),
    Mutant(
        "no state changes the base",
        "saving/checkpoint.py",
        "        if digest(other.to(tensor.dtype)) != digest(tensor):",
        "        if digest(tensor) != digest(tensor):",
        f"{PLAIN}::test_a_whole_state_is_taken_too_but_never_changes_the_base",
    ),
    Mutant(
        "a trainer writes what was inserted and nothing of the base",
        "saving/pretrained.py",
        "tensors = checkpoint(self) if state_dict is None",
        "tensors = self.state_dict() if state_dict is None",
        f"{TRAINING}::test_a_checkpoint_holds_what_was_inserted_and_nothing_of_the_base",
    ),
    Mutant(
        "a folder of insertions gives no untrained model",
        "saving/pretrained.py",
        "        fields = {**json.loads(config.to_json_string()), WEIGHTS_FIELD: NO_WEIGHTS}",
        "        fields = {**json.loads(config.to_json_string())}",
        f"{PLAIN}::test_a_folder_is_no_model_whoever_reads_it",
    ),
    Mutant(
        "the weights of another model are not overwritten",
        "saving/pretrained.py",
        "    if theirs and not (folder / MANIFEST).exists():",
        "    if theirs and (folder / MANIFEST).exists():",
        f"{PLAIN}::test_a_folder_of_something_else_is_left_alone",
    ),
    Mutant(
        "tensors and manifest of two checkpoints are told apart",
        "interchange/load.py",
        "    if ENTRY in saved and not torch.equal(saved[ENTRY], as_tensor(manifest)):",
        "    if ENTRY in saved and not torch.equal(saved[ENTRY], saved[ENTRY]):",
        f"{PLAIN}::test_two_halves_of_two_checkpoints_are_no_checkpoint",
    ),
    Mutant(
        "accelerate leaves the base out",
        "saving/checkpoint.py",
        "if all(name[len(prefix) :] in ours[prefix] for prefix in ours if name.startswith(prefix))",
        "if all(name for prefix in ours if name.startswith(prefix))",
        f"{PLAIN}::test_accelerate_saves_and_loads_insertions_only",
    ),
    Mutant(
        "the reference has no parameters of its own",
        "lowering/lower.py",
        "    return _without_insertions(copied(tuned, dict(kept)))",
        "    return _without_insertions(shared_copy(tuned))",
        f"{TRL}::test_the_reference_is_the_base_without_memory_of_its_own",
    ),
    Mutant(
        "a copy runs its own forward, not the original's",
        "copies.py",
        '            new.get_submodule(path).__dict__.pop("forward", None)',
        '            new.get_submodule(path).__dict__.pop("backward", None)',
        f"{TRL}::test_a_base_that_served_as_reference_is_compiled_again",
    ),
    Mutant(
        "what holds a compiled model is not compiled again",
        "compiling.py",
        "    if rewritten is not None:",
        '    if rewritten == "":',
        f"{COMPILING}::test_compiling_a_compiled_model_is_refused",
    ),
    Mutant(
        "an allocator of ranks goes on where it stood",
        "allocating.py",
        '        self.done = state["done"]',
        '        self.done = 0 * state["done"]',
        "citizen/test_training_ranks.py::test_ranks_are_cut_as_without_an_interruption",
    ),
    Mutant(
        "a folder of insertions is no model, whoever brings a config",
        "saving/pretrained.py",
        "{**owned(tensors), **no_model(tuned)}",
        "owned(tensors)",
        "citizen/test_training_checkpoints.py::test_a_folder_is_no_model_with_a_config_from_elsewhere_either",
    ),
    Mutant(
        "a trainer keeps of a plain module what was inserted",
        "saving/root.py",
        "            return owned(checkpoint(self))",
        "            pass",
        "citizen/test_training_plain.py::"
        "test_an_interrupted_run_of_a_plain_module_goes_on_from_insertions_alone",
    ),
)
