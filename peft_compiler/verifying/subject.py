"""What is verified, and what it is compared with."""

import copy
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from peft_compiler.lowering.compilation import Compilation
from peft_compiler.lowering.lower import base_of
from peft_compiler.methods._loaded import loaded_buffers
from peft_compiler.plan import is_inserted

MOVED_BY = 0.05
"""Standard deviation of what is added to inserted parameters, so that none of them is zero."""


class BrokenPromiseError(Exception):
    """A promise is not kept; says what was found."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One compiled model and what its promises are tried on. All share the base's weights.

    Attributes:
        tuned: The compiled model. No check may change it.
        compilation: What it remembers.
        base: The plain model without insertions.
        moved: A copy of `tuned` whose inserted parameters, and what waits to be loaded, were moved a
            little at random.
        inputs: The example inputs, on its device.
    """

    tuned: nn.Module
    compilation: Compilation
    base: nn.Module
    moved: nn.Module
    inputs: dict[str, Any]

    @classmethod
    def of(cls, tuned: nn.Module, compilation: Compilation) -> "Subject":
        """Returns the subject that `tuned` is."""
        moved, base = unwrapped(moved_copy(tuned, MOVED_BY, seed=0)), unwrapped(base_of(tuned))
        return cls(tuned, compilation, base.eval(), moved.eval(), compilation.example_on(tuned))


def unwrapped(model: nn.Module) -> nn.Module:
    """Takes off, in place, what a trainer put around forwards, such as autocast, and returns the model.

    It is no part of what was compiled, and nothing that writes the model to a file keeps it.
    """
    for module in model.modules():
        if isinstance(module.__dict__.get("forward"), MethodType):
            del module.__dict__["forward"]
    return model


def moved_copy(tuned: nn.Module, deviation: float, seed: int) -> nn.Module:
    """Returns a copy of a compiled model with noise of that deviation added to what is trained or loaded."""
    moved = copy_of(tuned)
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            if is_inserted(name):
                parameter.add_(noise(parameter, draws), alpha=deviation)
        for buffer in loaded_buffers(moved):
            buffer.add_(noise(buffer, draws), alpha=deviation)
    return moved


def copy_of(tuned: nn.Module) -> nn.Module:
    """Returns a copy of a compiled model on the very parameters of its base; the rest is copied."""
    kept = {id(parameter): parameter for name, parameter in tuned.named_parameters() if not is_inserted(name)}
    return copy.deepcopy(tuned, kept)


def noise(like: Tensor, draws: torch.Generator) -> Tensor:
    """Returns standard normal values of the shape, dtype and device of `like`, the same on every device."""
    return torch.randn(like.shape, generator=draws).to(like.device, like.dtype)
