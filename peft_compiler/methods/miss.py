"""MiSS: one small block is repeated along the inputs of a weight and added to it.

Kang and Yin 2024, "MiSS: Revisiting the Trade-off in LoRA with an Efficient Shard-Sharing
Structure", https://arxiv.org/abs/2409.15371, section 4.2, the efficient form: W + [D, D, ..., D],
with D of shape (out, r) repeated until the inputs are covered, the last time as far as they go.
"""

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from peft_compiler.methods._method import MergeRule, Method, NoMerge, Wiring
from peft_compiler.methods._weights import Added, Update, fan_in_of, fold, form_of, stack_of
from peft_compiler.site import PROJECTIONS, Role, Site


class MiSS(Method, frozen=True):
    """Spec of one shared block.

    >>> MiSS(r=16).kind
    'miss'
    """

    paper: ClassVar[str] = "arXiv:2409.15371"
    attaches: ClassVar[Mapping[Role, Wiring]] = dict.fromkeys(sorted(PROJECTIONS), Wiring.BESIDE)
    spoken: ClassVar[tuple[str, ...]] = ("miss",)
    spoken_fields: ClassVar[Mapping[str, str]] = {"rank": "r"}
    default_roles: ClassVar[tuple[Role, ...]] = (Role.QUERY, Role.VALUE)
    identity: ClassVar[bool] = True
    merge: ClassVar[MergeRule | NoMerge] = fold

    kind: Literal["miss"] = "miss"
    r: int = Field(default=64, gt=0, description="Columns of the block, and rank of the update.")

    @override
    def problems(self, site: Site) -> Iterator[str]:
        yield from super().problems(site)
        if site.role in self.attaches and self.r > fan_in_of(site):
            yield f"r={self.r} exceeds the {fan_in_of(site)} inputs of a row: take r <= {fan_in_of(site)}"

    @override
    def wiring(self, site: Site) -> Wiring:
        return Wiring.BESIDE if form_of(site) in ("linear", "transposed") else Wiring.ON_WEIGHT

    @override
    def parameter_count(self, site: Site) -> int:
        return math.prod(stack_of(site)) * site.width_out * self.r

    @override
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> "SharedBlock | Added":
        block = torch.zeros(*stack_of(site), site.width_out, self.r)
        form = SharedBlock if fan_in_of(site) % self.r == 0 else CutBlock
        update = form(block, fan_in_of(site))
        return update if self.wiring(site) is Wiring.BESIDE else Added(site, update)


class SharedBlock(Update):
    """[D, D, ..., D] x = D (x_1 + x_2 + ...), with `block` for D of shape (*experts, out, r).

    Identity at initialisation because D is zero.
    """

    def __init__(self, block: Tensor, fan_in: int) -> None:
        super().__init__()
        self.block = nn.Parameter(block)
        self.fan_in = fan_in

    @override
    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        return functional.linear(x.unflatten(-1, (-1, self.block.shape[-1])).sum(-2), self.block)

    @override
    def delta(self) -> Float[Tensor, "*experts d_out d_in"]:
        repeats = math.ceil(self.fan_in / self.block.shape[-1])
        return torch.cat((self.block,) * repeats, -1)[..., : self.fan_in]


class CutBlock(SharedBlock):
    """The same where the block is cut at the last input."""

    @override
    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        return super().forward(functional.pad(x, (0, -self.fan_in % self.block.shape[-1])))
