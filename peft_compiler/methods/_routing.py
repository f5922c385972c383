"""Routers: what an inserted module does may depend on the states that its input has in a run before.

A stack of blocks runs twice. In the first run the places of a rule are given a number; the
rule's router reads what comes out of the last block, and in the second run they are given
what it makes of that. What is given is kept for each thread, as threads may share a model,
and no longer than the call lasts.
"""

import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from peft_compiler.errors import LoweringError
from peft_compiler.methods._prompts import linear
from peft_compiler.methods._shared import Shared
from peft_compiler.site import Stack

Given = float | Tensor
"""A number in the first run; in the second what a router made of the states, (batch, positions, width)."""


class _Call(threading.local):
    """What the call that a thread is in gives to the places of each router."""

    given: "Mapping[Router, Given] | None" = None


_CALL = _Call()


class Router(Shared):
    """An MLP with ReLU between its layers; with none, what it reads is what it gives.

    The places of one rule in one stack share it. Its `layers` take states (batch, positions, d) to
    (batch, positions, width).
    """

    def __init__(
        self,
        stack: Stack,
        widths: tuple[int, ...],
        goes_on: bool,
        dropout: float,
        first: float,
        generator: torch.Generator,
    ) -> None:
        """Builds the layers.

        Args:
            stack: The blocks whose states it reads.
            widths: What it reads, the units between its layers, and what it gives.
            goes_on: Whether a layer of each place comes after its own, with what is between layers.
            dropout: Probability to zero one of the units between two layers.
            first: What its places are given in the first run.
            generator: What its parameters are drawn from.
        """
        super().__init__()
        self.alike = stack.path
        self.stack = stack
        self.first = first
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers += [linear(width_in, width_out, generator), nn.ReLU()]
            layers += [nn.Dropout(dropout)] if dropout else []
        if not goes_on:
            del layers[-2 if dropout else -1 :]
        self.layers = nn.Sequential(*layers)

    @override
    def forward(self, states: Float[Tensor, "batch positions d"]) -> Float[Tensor, "batch positions width"]:
        return self.layers(states)

    @property
    def given(self) -> Given:
        """What the running call gives to its places.

        Raises:
            LoweringError: If none is running: only the stack as a whole knows the states.
        """
        found = None if _CALL.given is None else _CALL.given.get(self)
        if found is None:
            raise LoweringError(
                f"a place that a router decides about ran by itself, outside of '{self.stack.path}', which "
                "gives it the router's answer; call that, and checkpoint no less than a whole block"
            )
        return found


def mlp_count(widths: tuple[int, ...]) -> int:
    """Returns how many parameters a router with layers of these widths has."""
    return sum((width_in + 1) * width_out for width_in, width_out in pairwise(widths))


def given_now() -> Mapping[Router, Given] | None:
    """Returns what the running call of this thread gives to the places of each router; None without one."""
    return _CALL.given


@contextmanager
def giving(given: Mapping[Router, Given]) -> Generator[None]:
    """While it lasts, the places of these routers are given this, in this thread."""
    before = _CALL.given
    _CALL.given = {**(before or {}), **given}
    try:
        yield
    finally:
        _CALL.given = before
