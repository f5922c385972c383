"""LoReFT: the state that a block gives is edited within a subspace of low rank.

Wu et al. 2024, "ReFT: Representation Finetuning for Language Models",
https://arxiv.org/abs/2404.03592, section 3.2, equation 2: h + Rᵀ (W h + b − R h), with R of shape
(r, d), whose rows are orthonormal, and W of shape (r, d), at the first and last positions of the prompt.
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from peft_compiler.methods._method import MergeRule, Method, NoMerge, Wiring
from peft_compiler.methods._positions import Positions, choosing_problems
from peft_compiler.site import Role, Site


class LoReFT(Method, frozen=True):
    """Spec of one intervention.

    >>> LoReFT(r=4, first=7, last=7).r
    4
    """

    paper: ClassVar[str] = "arXiv:2404.03592"
    attaches: ClassVar[Mapping[Role, Wiring]] = {Role.BLOCK: Wiring.AFTER_WITH_MASK}
    spoken: ClassVar[tuple[str, ...]] = ("loreft",)
    spoken_fields: ClassVar[Mapping[str, str]] = {"rank": "r"}
    default_roles: ClassVar[tuple[Role, ...]] = (Role.BLOCK,)
    identity: ClassVar[bool] = False
    merge: ClassVar[MergeRule | NoMerge] = NoMerge("no weight of the base edits what a block gives")

    kind: Literal["loreft"] = "loreft"
    r: int = Field(default=8, gt=0, description="Dimension of the subspace.")
    first: int | None = Field(
        default=None, gt=0, description="Tokens to edit at the start; all if neither is given."
    )
    last: int | None = Field(
        default=None, gt=0, description="Tokens to edit at the end; all if neither is given."
    )

    orthonormal: bool = Field(
        default=True,
        description="Whether the rows of R stay orthonormal; without, it is NoReFT of the authors' code.",
    )

    @override
    def problems(self, site: Site) -> Iterator[str]:
        yield from super().problems(site)
        if self.r > site.width_out:
            yield f"r={self.r} is no subspace: the place is {site.width_out} wide; take less"
        yield from choosing_problems(self.first, self.last, site)

    @override
    def decodes_in_steps(self) -> bool:
        # Which positions are first and last depends on how many are given at once.
        return self.first is None and self.last is None

    @override
    def parameter_count(self, site: Site) -> int:
        return 2 * self.r * site.width_out + self.r

    @override
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> "SubspaceEdit":
        return SubspaceEdit(site, self, generator)


class SubspaceEdit(Positions):
    """h + Rᵀ (W h + b − R h), with `rotation` R and `source` W of shape (r, d) and `bias` b of shape (r).

    Not the identity at initialisation: W starts apart from R, uniform as the linear of the
    authors' code. R is orthonormal at every step because what is trained is made so in forward;
    by request it only starts so.
    """

    def __init__(self, site: Site, method: LoReFT, generator: torch.Generator) -> None:
        super().__init__(method.first, method.last, site)
        self.stays_orthonormal = method.orthonormal
        d, r = site.width_out, method.r
        self.rotation = nn.Parameter(orthonormal(torch.empty(r, d).normal_(generator=generator)))
        self.source = nn.Parameter(torch.empty(r, d).uniform_(-(d**-0.5), d**-0.5, generator=generator))
        self.bias = nn.Parameter(torch.empty(r).uniform_(-(d**-0.5), d**-0.5, generator=generator))

    @override
    def forward(self, h: Float[Tensor, "*batch d"], mask: Tensor | None = None) -> Float[Tensor, "*batch d"]:
        rotation = orthonormal(self.rotation) if self.stays_orthonormal else self.rotation
        # W h + b − R h in one product.
        edit = functional.linear
        return self.changed(h, mask, lambda x: x + edit(x, self.source - rotation, self.bias) @ rotation)


def orthonormal(rows: Float[Tensor, "r d"]) -> Float[Tensor, "r d"]:
    """Returns an orthonormal basis of the space of some rows: those very rows where they are one already."""
    # No half precision: it has no such factorisation.
    exact = rows.to(torch.promote_types(rows.dtype, torch.float32))
    q, triangle = torch.linalg.qr(exact.mT)
    return (q * triangle.diagonal().sign()).mT.to(rows.dtype)
