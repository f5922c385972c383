"""The promises that are tried on every type: those about the function, not about files and copies of it."""

import torch
from torch import nn

from peft_compiler.lowering.compilation import compilation_of
from peft_compiler.verifying.subject import BrokenPromiseError, Subject
from peft_compiler.verifying.verify import PROMISES

TRIED = (
    "only inserted parameters require gradients",
    "the base is as it was when compiled",
    "the count is the formula's",
    "every rule is bound",
    "fresh insertions are the identity",
    "gradients reach every insertion",
    "other rows of fused projections are untouched",
    "decoding step by step equals decoding at once",
)
"""What `verify` tries too, with more that would triple the time of a run over all types."""

_LONGEST = 400


def kept_and_broken(tuned: nn.Module) -> tuple[dict[str, str], dict[str, str]]:
    """Returns what was found for each promise that is kept, and for each that is not."""
    kept: dict[str, str] = {}
    broken: dict[str, str] = {}
    torch.backends.mha.set_fastpath_enabled(False)  # as `verify` does: fused layers round differently
    subject = Subject.of(tuned, compilation_of(tuned))
    for promise in TRIED:
        try:
            kept[promise] = PROMISES[promise](subject)[:_LONGEST]
        except BrokenPromiseError as error:
            broken[promise] = str(error)[:_LONGEST]
        except Exception as error:  # a check that cannot be made is a promise not kept
            broken[promise] = f"{type(error).__name__}: {error}"[:_LONGEST]
    return kept, broken
