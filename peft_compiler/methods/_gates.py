"""Gates of UniPELT: one number between 0 and 1 for each position, or for each example."""

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from peft_compiler.site import Site

Gating = Literal["position", "sequence"]
"""What has a gate of its own: each position, or each sequence, as the mean over its positions."""

DEVIATION = 0.02
"""Standard deviation at which the weight of a gate starts."""


class Gate(nn.Module):
    """sigmoid(w x + b), with x of shape (..., d), as (..., 1); averaged over positions by request.

    `weight` is w of shape (1, d), `bias` b of shape (1). arXiv:2110.07577, section 3.2; the average is
    that of the authors' code, over all positions that are given, padding included.

    Args:
        d: Width of x.
        batch_axis: The axis of x that counts examples; the mean is over all others but the last.
            None for a gate for each position.
        generator: What w is drawn from, with a standard deviation of 0.02; b starts at zero.
    """

    def __init__(self, d: int, batch_axis: int | None, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, d).normal_(std=DEVIATION, generator=generator))
        self.bias = nn.Parameter(torch.zeros(1))
        self.batch_axis = batch_axis

    @override
    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*gates 1"]:
        gates = functional.linear(x, self.weight, self.bias).sigmoid()
        if self.batch_axis is None:
            return gates
        return gates.mean([axis for axis in range(x.dim() - 1) if axis != self.batch_axis], keepdim=True)

    @override
    def extra_repr(self) -> str:
        each = "position" if self.batch_axis is None else f"index of axis {self.batch_axis}"
        return f"{self.weight.shape[1]}, one for each {each}"


def gate_count(d: int) -> int:
    """Returns the parameters of a gate that reads vectors of width d."""
    return d + 1


def averaging_problems(site: Site, instead: str) -> Iterator[str]:
    """Yields why a gate cannot average over the positions of an example, and what to take instead."""
    if site.batch_axis is None:
        yield (
            "a gate for each sequence averages over the positions of an example, which are not told apart "
            "here: examples and positions are flattened into one axis, or the example inputs have as many "
            f"of one as of the other; take {instead}, or other example inputs"
        )
