"""DiReFT: LoReFT without the orthonormal rows, and without the difference.

Wu et al. 2024, "ReFT: Representation Finetuning for Language Models",
https://arxiv.org/abs/2404.03592, section 3.2, equation 3: h + W₂ᵀ (W₁ h + b), with W₁ and W₂ of
shape (r, d), at the first and last positions of the prompt.
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


class DiReFT(Method, frozen=True):
    """Spec of one intervention.

    >>> DiReFT(r=4, first=7).last is None
    True
    """

    paper: ClassVar[str] = "arXiv:2404.03592"
    attaches: ClassVar[Mapping[Role, Wiring]] = {Role.BLOCK: Wiring.AFTER_WITH_MASK}
    spoken: ClassVar[tuple[str, ...]] = ("direft",)
    spoken_fields: ClassVar[Mapping[str, str]] = {"rank": "r"}
    default_roles: ClassVar[tuple[Role, ...]] = (Role.BLOCK,)
    identity: ClassVar[bool] = True
    merge: ClassVar[MergeRule | NoMerge] = NoMerge("no weight of the base edits what a block gives")

    kind: Literal["direft"] = "direft"
    r: int = Field(default=8, gt=0, description="Rank of the edit.")
    first: int | None = Field(
        default=None, gt=0, description="Tokens to edit at the start; all if neither is given."
    )
    last: int | None = Field(
        default=None, gt=0, description="Tokens to edit at the end; all if neither is given."
    )

    @override
    def problems(self, site: Site) -> Iterator[str]:
        yield from super().problems(site)
        if self.r > site.width_out:
            yield f"r={self.r} exceeds the rank of an edit of {site.width_out} features; take less"
        yield from choosing_problems(self.first, self.last, site)

    @override
    def decodes_in_steps(self) -> bool:
        # Which positions are first and last depends on how many are given at once.
        return self.first is None and self.last is None

    @override
    def parameter_count(self, site: Site) -> int:
        return 2 * self.r * site.width_out + self.r

    @override
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> "DirectEdit":
        return DirectEdit(site, self.r, self.first, self.last, generator)


class DirectEdit(Positions):
    """h + W₂ᵀ (W₁ h + b), with `down` W₁ and `up` W₂ of shape (r, d) and `bias` b of shape (r).

    Identity at initialisation because `up` starts at zero, as LoRA's does, which the paper
    likens it to; the authors' code starts both at random.
    """

    def __init__(
        self, site: Site, r: int, first: int | None, last: int | None, generator: torch.Generator
    ) -> None:
        super().__init__(first, last, site)
        d = site.width_out
        self.down = nn.Parameter(torch.empty(r, d).uniform_(-(d**-0.5), d**-0.5, generator=generator))
        self.bias = nn.Parameter(torch.empty(r).uniform_(-(d**-0.5), d**-0.5, generator=generator))
        self.up = nn.Parameter(torch.zeros(r, d))

    @override
    def forward(self, h: Float[Tensor, "*batch d"], mask: Tensor | None = None) -> Float[Tensor, "*batch d"]:
        return self.changed(h, mask, lambda x: x + functional.linear(x, self.down, self.bias) @ self.up)
