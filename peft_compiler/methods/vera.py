"""VeRA: two vectors scale random matrices that all sites of a shape share.

Kopiczko et al. 2023, "VeRA: Vector-based Random Matrix Adaptation",
https://arxiv.org/abs/2310.11454, section 3.1, equation 2: W + Λ_b B Λ_d A. A of shape (r, in) and B
of shape (out, r) are random and frozen, the vectors b of shape (out) and d of shape (r) are
trained.
"""

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from peft_compiler.methods._frozen import FrozenPair, Uniform
from peft_compiler.methods._method import Factor, MergeRule, Method, NoMerge, Wiring
from peft_compiler.methods._weights import Added, Update, fan_in_of, fold, form_of, stack_of
from peft_compiler.site import PROJECTIONS, Role, Site


class VeRA(Method, frozen=True):
    """Spec of one pair of scaling vectors.

    >>> VeRA(r=64).kind
    'vera'
    """

    paper: ClassVar[str] = "arXiv:2310.11454"
    attaches: ClassVar[Mapping[Role, Wiring]] = dict.fromkeys(sorted(PROJECTIONS), Wiring.BESIDE)
    spoken: ClassVar[tuple[str, ...]] = ("vera",)
    spoken_fields: ClassVar[Mapping[str, str]] = {"rank": "r"}
    default_roles: ClassVar[tuple[Role, ...]] = (Role.QUERY, Role.VALUE)
    identity: ClassVar[bool] = True
    merge: ClassVar[MergeRule | NoMerge] = fold

    kind: Literal["vera"] = "vera"
    r: int = Field(default=256, gt=0, description="Rows of A; it may exceed the rank of the weight.")
    d_initial: Factor = Field(default=0.1, description="What every entry of d starts at.")
    seed: int = Field(default=0, ge=0, description="What A and B are drawn from, with their shapes.")

    @override
    def wiring(self, site: Site) -> Wiring:
        return Wiring.BESIDE if form_of(site) in ("linear", "transposed") else Wiring.ON_WEIGHT

    @override
    def parameter_count(self, site: Site) -> int:
        return math.prod(stack_of(site)) * (self.r + site.width_out)  # section 3.2

    @override
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> "ScaledPair | Added":
        d = torch.full((*stack_of(site), self.r), self.d_initial)
        b = torch.zeros(*stack_of(site), site.width_out)
        # Kaiming uniform, as in section 3.3.
        down = Uniform((self.r, fan_in_of(site)), math.sqrt(6 / fan_in_of(site)))
        up = Uniform((site.width_out, self.r), math.sqrt(6 / self.r))
        update = ScaledPair(d, b, FrozenPair(self.seed, down, up))
        return update if self.wiring(site) is Wiring.BESIDE else Added(site, update)


class ScaledPair(Update):
    """Λ_b B Λ_d A x, with `d` of shape (*experts, r) and `b` of shape (*experts, out).

    Identity at initialisation because `b` is zero; `d` is not, so that `b` has a gradient from
    the first step on. Only the two vectors are saved.
    """

    def __init__(self, d: Tensor, b: Tensor, pair: FrozenPair) -> None:
        super().__init__()
        self.d = nn.Parameter(d)
        self.b = nn.Parameter(b)
        self.pair = pair

    @override
    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        return self.b * functional.linear(self.d * functional.linear(x, self.pair.down), self.pair.up)

    @override
    def delta(self) -> Float[Tensor, "*experts d_out d_in"]:
        return (self.b.unsqueeze(-1) * self.pair.up) @ (self.d.unsqueeze(-1) * self.pair.down)
