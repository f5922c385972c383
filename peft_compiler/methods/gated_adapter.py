"""Gated adapters: each position, or each sequence, says how much of its adapter it wants.

Mao et al. 2021, "UniPELT: A Unified Framework for Parameter-Efficient Language Model Tuning",
https://arxiv.org/abs/2110.07577, section 3.2: h_F + G_A · up(activation(down(h_FN))), with the gate
G_A = sigmoid(w h_FN + b), h_F what the feed-forward layer gives and h_FN that after its residual add
and norm, both of shape (..., d). Where a block normalises first, there is no norm behind the add,
and h_FN is the sum itself. The authors' code averages the gate over the positions of a sequence:
`gate="sequence"`, as the recipe `unipelt` has it. Then a token's output depends on those that come
later, which a model that generates does not have, so by default each position has its own.
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
from peft_compiler.methods._gates import Gate, Gating, averaging_problems, gate_count
from peft_compiler.methods._method import MergeRule, Method, NoMerge, Wiring
from peft_compiler.site import EDGES, Role, Site


class GatedAdapter(Method, frozen=True):
    """Spec of one adapter with a gate.

    >>> GatedAdapter().activation
    'relu'
    """

    paper: ClassVar[str] = "arXiv:2110.07577"
    attaches: ClassVar[Mapping[Role, Wiring]] = dict.fromkeys(sorted(EDGES), Wiring.AFTER_NORM)
    spoken: ClassVar[tuple[str, ...]] = ("gated adapter",)
    spoken_fields: ClassVar[Mapping[str, str]] = {"size": "width"}
    default_roles: ClassVar[tuple[Role, ...]] = (Role.FEED_FORWARD,)
    identity: ClassVar[bool] = True
    merge: ClassVar[MergeRule | NoMerge] = NoMerge("an activation separates its two projections")

    kind: Literal["gated_adapter"] = "gated_adapter"
    width: int | None = Field(
        default=None, gt=0, description="Units in the narrow layer; 1/16 of the site's if not given."
    )
    activation: Activation = Field(default="relu", description="Between the two projections.")
    gate: Gating = Field(
        default="position", description="Whether each position has a gate, or each sequence, their mean."
    )

    @override
    def at(self, site: Site) -> Self:
        return self.model_copy(update={"width": width_at(site, self.width)})

    @override
    def problems(self, site: Site) -> Iterator[str]:
        yield from super().problems(site)
        if problem := no_bottleneck(site, self.width):
            yield problem
        if self.gate == "sequence":
            yield from averaging_problems(site, "gate=position")

    @override
    def decodes_in_steps(self) -> bool:
        return self.gate == "position"

    @override
    def parameter_count(self, site: Site) -> int:
        d = site.width_out
        return bottleneck_count(d, width_at(site, self.width)) + gate_count(d)

    @override
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> "GatedBottleneck":
        d, m = site.width_out, width_at(site, self.width)
        down, up = projection(d, m, d**-0.5, generator), projection(m, d, 0.0, generator)
        gate = Gate(d, site.batch_axis if self.gate == "sequence" else None, generator)
        return GatedBottleneck(down, self.activation, up, gate)


class GatedBottleneck(Bottleneck):
    """gate(x) · up(activation(down(x))), with x of shape (..., d).

    Nothing is added at initialisation because `up` starts at zero.
    """

    def __init__(self, down: nn.Module, activation: Activation, up: nn.Module, gate: Gate) -> None:
        super().__init__(down, activation, up)
        self.gate = gate

    @override
    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return self.gate(x) * super().forward(x)
