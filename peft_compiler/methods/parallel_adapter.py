"""Parallel adapters: a narrow branch beside a sub-layer, computed from the stream that this leaves.

He et al. 2021, "Towards a Unified View of Parameter-Efficient Transfer Learning",
https://arxiv.org/abs/2110.04366, section 3.3 and table 1: y + s · up(activation(down(x))), with x the
stream of shape (..., d) that the sub-layer leaves. Where the block normalises first, that is before
the norm, as in the authors' code for mBART.
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
    bottleneck_count,
    no_bottleneck,
    projection,
    width_at,
)
from peft_compiler.methods._method import Factor, MergeRule, Method, NoMerge, Wiring
from peft_compiler.site import EDGES, Edge, Role, Site


class ParallelAdapter(Method, frozen=True):
    """Spec of one parallel adapter.

    >>> ParallelAdapter(width=512, scale=4).scale
    4.0
    """

    paper: ClassVar[str] = "arXiv:2110.04366"
    attaches: ClassVar[Mapping[Role, Wiring]] = dict.fromkeys(sorted(EDGES), Wiring.PARALLEL)
    spoken: ClassVar[tuple[str, ...]] = ("parallel adapter", "scaled parallel adapter")
    spoken_fields: ClassVar[Mapping[str, str]] = {"size": "width"}
    default_roles: ClassVar[tuple[Role, ...]] = (Role.FEED_FORWARD,)
    identity: ClassVar[bool] = True
    merge: ClassVar[MergeRule | NoMerge] = NoMerge("an activation separates its two projections")

    kind: Literal["parallel_adapter"] = "parallel_adapter"
    width: int | None = Field(
        default=None, gt=0, description="Units in the narrow layer; 1/16 of the site's if not given."
    )
    activation: Activation = Field(
        default="relu", description="Between the two projections; relu in the authors' code."
    )
    scale: Factor | Literal["learned"] = Field(
        default=1.0, description="The factor s; `learned` starts it at one and trains it."
    )

    @override
    def at(self, site: Site) -> Self:
        return self.model_copy(update={"width": width_at(site, self.width)})

    @override
    def problems(self, site: Site) -> Iterator[str]:
        yield from super().problems(site)
        if problem := no_bottleneck(site, self.width):
            yield problem
        if isinstance(site.place, Edge) and site.place.source is None:
            yield (
                "the stream that the sub-layer leaves does not reach the "
                f"{site.module_type} that adds its output: take an adapter after it"
            )

    @override
    def parameter_count(self, site: Site) -> int:
        count = bottleneck_count(site.width_out, width_at(site, self.width))
        return count + (1 if self.scale == "learned" else 0)

    @override
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> "ScaledBottleneck":
        d, m = site.width_out, width_at(site, self.width)
        down, up = projection(d, m, d**-0.5, generator), projection(m, d, 0.0, generator)
        scale = nn.Parameter(torch.ones(())) if self.scale == "learned" else self.scale
        return ScaledBottleneck(down, self.activation, up, scale)


class ScaledBottleneck(Bottleneck):
    """s · up(activation(down(x))), with x of shape (..., d); a trained s is `scale`, of shape ().

    Nothing is added at initialisation because `up` starts at zero, as LoRA's does and the authors'
    scaled parallel adapters too (appendix A.3).
    """

    def __init__(
        self, down: nn.Module, activation: Activation, up: nn.Module, scale: nn.Parameter | float
    ) -> None:
        super().__init__(down, activation, up)
        self.scale = scale

    @override
    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return self.scale * super().forward(x)
