"""`verify`: proves the promises of a compiled model by trying them on copies of it."""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from peft_compiler.errors import PeftCompilerError
from peft_compiler.lowering.compilation import compilation_of
from peft_compiler.verifying import behaviour, preservation, structure
from peft_compiler.verifying.report import Finding, Report
from peft_compiler.verifying.subject import BrokenPromiseError, Subject

PROMISES: Mapping[str, Callable[[Subject], str]] = {
    "only inserted parameters require gradients": structure.only_inserted_parameters_learn,
    "the base is as it was when compiled": structure.base_is_as_it_was,
    "the count is the formula's": structure.count_is_the_formulas,
    "every rule is bound": structure.every_rule_is_bound,
    "fresh insertions are the identity": behaviour.fresh_insertions_are_the_identity,
    "gradients reach every insertion": behaviour.gradients_reach_every_insertion,
    "other rows of fused projections are untouched": behaviour.other_rows_are_untouched,
    "saving and loading keep the function": preservation.saving_and_loading,
    "deepcopy keeps the function": preservation.deep_copies,
    "pickle keeps the function": preservation.pickling,
    "another dtype keeps the function": preservation.another_dtype,
    "another device keeps the function": preservation.another_device,
    "merging keeps the function": preservation.merging,
    "decoding step by step equals decoding at once": preservation.decoding_step_by_step,
}
"""What every compiled model promises, and the check that raises, or says what it found."""


def verify(tuned: nn.Module) -> Report:
    """Returns a report on every promise, tried on the example inputs of the compilation.

    It is valid before and after training: identity is proved on freshly initialised
    insertions, everything else on the parameters as they are, moved a little at random so
    that nothing holds only because an insertion still starts at zero. Works on copies:
    `tuned`, its gradients, its mode and the random state stay as they were. Takes memory
    for one copy of the base in float64.

    Raises:
        PeftCompilerError: If `tuned` is not a compiled model, or has no weights.
    """
    compilation = compilation_of(tuned)
    if any(parameter.is_meta for parameter in tuned.parameters()):
        raise PeftCompilerError(
            f"a {type(tuned).__name__} on the meta device was given, which has no values to verify",
            ["load the weights first, then compile"],
        )
    devices = {parameter.device for parameter in tuned.parameters() if parameter.device.type == "cuda"}
    fused = torch.backends.mha.get_fastpath_enabled()
    # Where torch fuses a whole encoder layer it rounds differently; what is compiled is never fused.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.random.fork_rng(sorted(devices, key=str)):  # pyright: ignore[reportUnknownMemberType]
            subject = Subject.of(tuned, compilation)
            return Report(tuple(_find(promise, check, subject) for promise, check in PROMISES.items()))
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _find(promise: str, check: Callable[[Subject], str], subject: Subject) -> Finding:
    try:
        return Finding(promise, True, check(subject))
    except BrokenPromiseError as broken:
        return Finding(promise, False, str(broken))
    except Exception as error:  # a check that cannot be made is a promise not kept
        return Finding(promise, False, f"{type(error).__name__}: {error}")
