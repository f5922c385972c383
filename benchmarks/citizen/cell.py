"""What a cell of the matrix is: a method, tried in one respect on one architecture after another."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import peft_compiler as pc
from benchmarks.citizen.methods import METHODS
from peft_compiler.lowering.compilation import compilation_of
from tests import zoo


class NotApplicableError(Exception):
    """The feature says nothing about this method or architecture; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Case:
    """A method and a small model that it is compiled into.

    Attributes:
        method: A name of `METHODS`.
        architecture: A name of `tests.zoo`.
    """

    method: str
    architecture: str

    def base(self) -> nn.Module:
        """Returns the model as it was; the same weights every time."""
        return zoo.build(self.architecture)

    def untrained(self) -> Any:
        """Returns the model compiled with the method.

        Raises:
            NotApplicableError: If the method has no place in this architecture.
        """
        try:
            return pc.compile(self.base(), METHODS[self.method])
        except pc.PlanError as error:
            raise NotApplicableError(" ".join(str(error).split())) from error

    def decoding(self) -> Any:
        """Returns `tuned()`, if the method says that what it computes for a token is final.

        Raises:
            NotApplicableError: If it averages over a sequence, as the paper of UniPELT has it.
        """
        tuned = self.tuned()
        if all(insertion.method.decodes_in_steps() for insertion in compilation_of(tuned).plan.insertions):
            return tuned
        raise NotApplicableError("what it gives for a token depends on later tokens, as its paper has it")

    def tuned(self) -> Any:
        """Returns it with values as training might leave them, in eval mode."""
        tuned, draws = self.untrained(), torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in tuned.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=draws) * 0.2)
        return tuned.eval()


@dataclass(frozen=True, slots=True)
class Feature:
    """One thing that a compiled model does as its base does.

    Attributes:
        says: What is promised, as a reader of the page has it.
        holds: Raises AssertionError, or what the model itself raises, if a case breaks it.
        architectures: What it is tried on.
    """

    says: str
    holds: Callable[[Case], None]
    architectures: tuple[str, ...]
