"""The narrow pair of projections that every kind of adapter is made of."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from peft_compiler.site import Site

Activation = Literal["gelu", "relu", "silu", "tanh"]
ACTIVATIONS: Mapping[Activation, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


def width_at(site: Site, width: int | None) -> int:
    """Returns the units of the narrow layer: 1/16 of the site's where none are given."""
    return max(1, site.width_out // 16) if width is None else width


def no_bottleneck(site: Site, width: int | None) -> str | None:
    """Returns why a width is refused, or None."""
    narrow = width_at(site, width)
    if narrow < site.width_out:
        return None
    return f"width={narrow} is no bottleneck: the place is {site.width_out} wide; take less"


def bottleneck_count(d: int, m: int) -> int:
    """Returns the parameters of two projections with biases (arXiv:1902.00751, section 2.1)."""
    return 2 * m * d + d + m


def projection(d_in: int, d_out: int, deviation: float, generator: torch.Generator) -> nn.Linear:
    """Returns a linear with a Gaussian weight and a bias of zeros."""
    # On "meta" first: nn.Linear's own initialisation draws from the global generator.
    linear = nn.Linear(d_in, d_out, device="meta").to_empty(device="cpu")
    nn.init.normal_(linear.weight, std=deviation, generator=generator)
    nn.init.zeros_(linear.bias)
    return linear


class LowRankLinear(nn.Module):
    """right (left x) + bias, with `left` (r, d_in), `right` (d_out, r) and `bias` of shape (d_out)."""

    def __init__(self, d_in: int, d_out: int, r: int, deviation: float, generator: torch.Generator) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.empty(r, d_in).normal_(std=d_in**-0.5, generator=generator))
        self.right = nn.Parameter(torch.empty(d_out, r).normal_(std=deviation, generator=generator))
        self.bias = nn.Parameter(torch.zeros(d_out))

    @override
    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        return functional.linear(functional.linear(x, self.left), self.right, self.bias)


class Bottleneck(nn.Module):
    """up(activation(down(x))), with x of shape (..., d): `down` has a weight (m, d) and `up` one (d, m)."""

    def __init__(self, down: nn.Module, activation: Activation, up: nn.Module) -> None:
        super().__init__()
        self.down = down
        self.activation = ACTIVATIONS[activation]()
        self.up = up

    @override
    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return self.up(self.activation(self.down(x)))
