"""Bottleneck adapters: a narrow residual block on a sub-layer's output, or on a block's.

Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP",
https://arxiv.org/abs/1902.00751, section 2.1 and figure 2: y + up(activation(down(y))). With a
layer norm of its own on a block's output it is that of Bapna and Firat 2019,
https://arxiv.org/abs/1909.08478; with projections of low rank, the baseline "Adapter-LowRank" of
https://arxiv.org/abs/2106.04647, section 5.1. With y of shape (..., d), `down` and `up` have
weights of shape (m, d) and (d, m).
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from peft_compiler.methods._bottleneck import (
    Activation,
    Bottleneck,
    LowRankLinear,
    bottleneck_count,
    no_bottleneck,
    projection,
    width_at,
)
from peft_compiler.methods._method import MergeRule, Method, NoMerge, Wiring
from peft_compiler.site import EDGES, Role, Site

NEAR_ZERO = 0.01
"""Standard deviation of the projections near zero (section 3.6)."""


class Adapter(Method, frozen=True):
    """Spec of one bottleneck adapter.

    >>> Adapter(width=64).activation
    'gelu'
    """

    paper: ClassVar[str] = "arXiv:1902.00751"
    attaches: ClassVar[Mapping[Role, Wiring]] = dict.fromkeys(sorted(EDGES | {Role.BLOCK}), Wiring.AFTER)
    spoken: ClassVar[tuple[str, ...]] = ("adapter", "bottleneck adapter", "bottleneck")
    spoken_fields: ClassVar[Mapping[str, str]] = {"size": "width"}
    default_roles: ClassVar[tuple[Role, ...]] = (Role.FEED_FORWARD,)
    identity: ClassVar[bool] = True
    merge: ClassVar[MergeRule | NoMerge] = NoMerge("an activation separates its two projections")

    kind: Literal["adapter"] = "adapter"
    width: int | None = Field(
        default=None,
        gt=0,
        description="Units in the narrow layer (m in the paper); 1/16 of the site's if not given.",
    )
    activation: Activation = Field(
        default="gelu", description="Between the two projections; gelu in the authors' code."
    )
    init: Literal["zero", "near_zero"] = Field(
        default="zero",
        description="What the second projection starts at; near zero as in the paper is not the identity.",
    )
    layer_norm: bool = Field(default=False, description="Whether it normalises what it is given.")
    rank: int | None = Field(
        default=None, gt=0, description="Rank of its projections; each is one full matrix if not given."
    )

    @override
    def at(self, site: Site) -> Self:
        return self.model_copy(update={"width": width_at(site, self.width)})

    @override
    def problems(self, site: Site) -> Iterator[str]:
        yield from super().problems(site)
        m = width_at(site, self.width)
        if problem := no_bottleneck(site, self.width):
            yield problem
        elif self.rank is not None and self.rank >= m:
            yield f"rank={self.rank} is no restriction: the narrow layer has {m} units; take less"

    @override
    def starts_as_identity(self) -> bool:
        return self.init == "zero"

    @override
    def parameter_count(self, site: Site) -> int:
        d, m = site.width_out, width_at(site, self.width)
        adapter = bottleneck_count(d, m) if self.rank is None else 2 * self.rank * (m + d) + d + m
        return adapter + (2 * d if self.layer_norm else 0)

    @override
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> "ResidualBottleneck":
        d, m = site.width_out, width_at(site, self.width)
        first, second = (d**-0.5, 0.0) if self.init == "zero" else (NEAR_ZERO, NEAR_ZERO)
        down = self._projection(d, m, first, generator)
        up = self._projection(m, d, second, generator)
        if self.layer_norm:
            return NormedBottleneck(d, down, self.activation, up)
        return ResidualBottleneck(down, self.activation, up)

    def _projection(self, d_in: int, d_out: int, deviation: float, generator: torch.Generator) -> nn.Module:
        if self.rank is None:
            return projection(d_in, d_out, deviation, generator)
        return LowRankLinear(d_in, d_out, self.rank, deviation, generator)


class ResidualBottleneck(Bottleneck):
    """y + up(activation(down(y))), with y of shape (..., d).

    Identity at initialisation where `up` starts at zero. The paper starts both
    projections near zero instead, which is only close to the identity. `down` is
    Gaussian with variance 1 / d so that `up` has a gradient from the first step on.
    """

    @override
    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return x + super().forward(x)


class NormedBottleneck(ResidualBottleneck):
    """y + up(activation(down(norm(y)))), with y of shape (..., d); `norm` has two vectors of shape (d)."""

    def __init__(self, d: int, down: nn.Module, activation: Activation, up: nn.Module) -> None:
        super().__init__(down, activation, up)
        self.norm = nn.LayerNorm(d)

    @override
    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return x + self.up(self.activation(self.down(self.norm(x))))
