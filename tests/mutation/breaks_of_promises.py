"""Breaks of what is promised of a compiled model: files, merging, verifying."""

from tests.mutation.mutant import LOAD, MERGING, SAVE, VERIFY, Mutant

PROMISES = (
    Mutant(
        "merging leaves the compiled model alone",
        "merging.py",
        "host.get_parameter(name).detach().clone() for part",
        "host.get_parameter(name).detach() for part",
        f"{MERGING}::test_merged_equals_unmerged",
    ),
    Mutant(
        "a tied weight does not move on merge",
        "merging.py",
        "elif len(owners[id(parameter)]) > 1 and not untie:",
        "elif len(owners[id(parameter)]) > 2 and not untie:",
        f"{MERGING}::test_a_tied_weight_is_refused_or_untied",
    ),
    Mutant(
        "a crash while saving leaves the old folder",
        "interchange/save.py",
        "        old.rename(folder)\n        raise",
        "        raise",
        f"{SAVE}::test_a_failure_at_any_step_leaves_the_old_folder_or_none",
    ),
    Mutant(
        "a folder that holds something else is not overwritten",
        "interchange/save.py",
        "        if strangers:",
        "        if len(strangers) > 1:",
        f"{SAVE}::test_a_folder_that_holds_something_else_is_refused",
    ),
    Mutant(
        "only inserted parameters are saved",
        "interchange/save.py",
        "        if is_inserted(name):\n            owners.setdefault(id(tensor), name)",
        "        owners.setdefault(id(tensor), name)",
        f"{SAVE}::test_only_inserted_parameters_are_written",
    ),
    Mutant(
        "a base with other weights is refused",
        "interchange/load.py",
        ".weights != manifest.base.weights:",
        ".model != manifest.base.model:",
        f"{LOAD}::test_one_other_bit_in_the_base_is_refused",
    ),
    Mutant(
        "a base with another config is refused",
        "interchange/fingerprint.py",
        "            if mine != others:",
        "            if type(mine) is not type(others):",
        f"{LOAD}::test_another_base_is_refused_saying_what_differs",
    ),
    Mutant(
        "a tensor that the plan does not have is refused",
        "interchange/load.py",
        "for name in header.keys() - expected.keys():",
        "for name in expected.keys() - expected.keys():",
        f"{LOAD}::test_all_wrong_tensors_are_named_at_once",
    ),
    Mutant(
        "a file that was cut off is refused",
        "interchange/load.py",
        "if 8 + length + end != size:",
        "if 8 + length + end < size:",
        f"{LOAD}::test_a_bad_tensor_file_is_one_clear_error",
    ),
    Mutant(
        "loading fills in the parameters",
        "interchange/load.py",
        "tensor.copy_(saved[name])",
        "saved[name].copy_(tensor)",
        f"{LOAD}::test_what_is_loaded_is_what_was_saved",
    ),
    Mutant(
        "every bit of a tensor counts in its digest",
        "digests.py",
        'sha256.update(f"{part.dtype} {tuple(part.shape)};".encode())',
        "part = part.round(decimals=3) if part.is_floating_point() else part",
        "test_digests.py",
    ),
    Mutant(
        "verify sees a base that changed",
        "verifying/structure.py",
        "if now.get(name) != before[name]]",
        "if name not in now]",
        f"{VERIFY}::test_a_broken_model_is_found_out",
    ),
    Mutant(
        "verify sees an insertion that starts as something else",
        "verifying/behaviour.py",
        "if not equal(run(fresh, subject.inputs), run(subject.base, subject.inputs)):",
        "if not equal(run(fresh, subject.inputs), run(fresh, subject.inputs)):",
        f"{VERIFY}::test_an_insertion_that_is_not_the_identity_is_found_out",
    ),
    Mutant(
        "verify leaves the compiled model alone",
        "verifying/subject.py",
        "return copy.deepcopy(tuned, kept)",
        "return tuned",
        f"{VERIFY}::test_every_promise_is_kept_after_training_and_nothing_changes",
    ),
)
