"""Gated LoRA: each position, or each sequence, says how much of the low-rank update it wants.

Mao et al. 2021, "UniPELT: A Unified Framework for Parameter-Efficient Language Model Tuning",
https://arxiv.org/abs/2110.07577, section 3.2: W x + G_L · alpha / r · B A x, with the gate
G_L = sigmoid(w x + b) of what the projection is given, A of shape (r, in) and B of shape (out, r).
In the authors' code the gate takes the place of alpha / r, which is 1 here unless alpha is given,
and is averaged over the positions of a sequence: `gate="sequence"`, as the recipe `unipelt` has it.
Then a token's output depends on those that come later, which a model that generates does not have,
so by default each position has its own.
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from peft_compiler.methods._gates import Gate, Gating, averaging_problems, gate_count
from peft_compiler.methods._low_rank import LinearLoRA
from peft_compiler.methods._method import Factor, MergeRule, Method, NoMerge, Wiring
from peft_compiler.methods._weights import rank_problems
from peft_compiler.site import SHORT_NAMES, Projection, Role, Site


class GatedLoRA(Method, frozen=True):
    """Spec of one low-rank update with a gate.

    >>> GatedLoRA().r
    8
    """

    paper: ClassVar[str] = "arXiv:2110.07577"
    attaches: ClassVar[Mapping[Role, Wiring]] = dict.fromkeys(sorted(SHORT_NAMES["linear"]), Wiring.BESIDE)
    spoken: ClassVar[tuple[str, ...]] = ("gated lora",)
    spoken_fields: ClassVar[Mapping[str, str]] = {"rank": "r"}
    default_roles: ClassVar[tuple[Role, ...]] = (Role.QUERY, Role.VALUE)
    identity: ClassVar[bool] = True
    merge: ClassVar[MergeRule | NoMerge] = NoMerge("its gate depends on the input")

    kind: Literal["gated_lora"] = "gated_lora"
    r: int = Field(default=8, gt=0, description="Rank of the update.")
    alpha: Factor | None = Field(
        default=None,
        description="The update is scaled by alpha / r; r if not given.",
    )
    gate: Gating = Field(
        default="position", description="Whether each position has a gate, or each sequence, their mean."
    )

    @override
    def at(self, site: Site) -> Self:
        return self if self.alpha is not None else self.model_copy(update={"alpha": float(self.r)})

    @override
    def problems(self, site: Site) -> Iterator[str]:
        yield from super().problems(site)
        if not isinstance(site.place, Projection):
            return
        yield from rank_problems(self.r, site)
        if site.place.form not in ("linear", "transposed"):
            yield f"the gate reads one vector a position, which a {site.place.form} is not given: take LoRA"
        elif self.gate == "sequence":
            yield from averaging_problems(site, "gate=position")

    @override
    def decodes_in_steps(self) -> bool:
        return self.gate == "position"

    @override
    def parameter_count(self, site: Site) -> int:
        return self.r * (site.width_in + site.width_out) + gate_count(site.width_in)

    @override
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> "GatedUpdate":
        # Gaussian as in LoRA, with the variance of kaiming_uniform_(a=sqrt(5)).
        down = torch.empty(self.r, site.width_in).normal_(
            std=(3 * site.width_in) ** -0.5, generator=generator
        )
        up = torch.zeros(site.width_out, self.r)
        scale = (self.r if self.alpha is None else self.alpha) / self.r
        gate = Gate(site.width_in, site.batch_axis if self.gate == "sequence" else None, generator)
        return GatedUpdate(LinearLoRA(down, up, scale, ()), gate)


class GatedUpdate(nn.Module):
    """gate(x) · update(x), with x of shape (..., d_in).

    Nothing is added at initialisation because the update starts at zero.
    """

    def __init__(self, update: LinearLoRA, gate: Gate) -> None:
        super().__init__()
        self.update = update
        self.gate = gate

    @override
    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        return self.gate(x) * self.update(x)
