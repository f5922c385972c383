"""Compacter: adapters whose projections are sums of Kronecker products with factors that all share.

Karimi Mahabadi et al. 2021, "Compacter: Efficient Low-Rank Hypercomplex Adapter Layers",
https://arxiv.org/abs/2106.04647, section 3.2, equation 5: W = sum over i of A_i ⊗ (s_i t_i), with n
matrices A_i of shape (n, n) shared by every projection of every layer, and s_i of shape
(d_in / n, r) and t_i of shape (r, d_out / n) of each projection's own. Compacter stands after both
sub-layers, Compacter++ (section 5.2) only after the feed-forward one; layer norms are trained with
them.
"""

from collections.abc import Hashable, Iterator, Mapping
from typing import ClassVar, Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from peft_compiler.methods._bottleneck import ACTIVATIONS, Activation, no_bottleneck
from peft_compiler.methods._method import MergeRule, Method, NoMerge, Wiring
from peft_compiler.methods._shared import Shared
from peft_compiler.site import EDGES, Role, Site

RULE_DEVIATION = 0.01
"""Standard deviation of the shared factors in the authors' code."""


class Compacter(Method, frozen=True):
    """Spec of one Compacter adapter.

    >>> Compacter().n
    4
    """

    paper: ClassVar[str] = "arXiv:2106.04647"
    attaches: ClassVar[Mapping[Role, Wiring]] = dict.fromkeys(sorted(EDGES), Wiring.AFTER)
    spoken: ClassVar[tuple[str, ...]] = ("compacter adapter", "phm adapter")
    spoken_fields: ClassVar[Mapping[str, str]] = {"size": "width"}
    default_roles: ClassVar[tuple[Role, ...]] = (Role.ATTENTION, Role.FEED_FORWARD)
    default_cross: ClassVar[bool | None] = False
    identity: ClassVar[bool] = True
    merge: ClassVar[MergeRule | NoMerge] = NoMerge("an activation separates its two projections")

    kind: Literal["compacter"] = "compacter"
    width: int | None = Field(
        default=None,
        gt=0,
        description="Units in the narrow layer; a multiple of n near 1/32 of the site's if not given.",
    )
    n: int = Field(default=4, gt=0, description="Number of Kronecker products in each sum.")
    rank: int = Field(default=1, gt=0, description="Rank of each projection's own factors.")
    activation: Activation = Field(default="gelu", description="Between the two projections.")

    @override
    def at(self, site: Site) -> Self:
        return self.model_copy(update={"width": self._width(site)})

    @override
    def problems(self, site: Site) -> Iterator[str]:
        yield from super().problems(site)
        m = self._width(site)
        if problem := no_bottleneck(site, m):
            yield problem
        for what, size in (("the place", site.width_out), ("the narrow layer", m)):
            if size % self.n:
                yield f"n={self.n} does not divide the {size} features of {what}; take a divisor of both"
        limit = min(site.width_out, m) // self.n
        if limit and self.rank > limit:
            yield f"rank={self.rank} exceeds that of the factors, {limit}; take less"

    @override
    def parameter_count(self, site: Site) -> int:
        d, m = site.width_out, self._width(site)
        return 2 * self.rank * (d + m) + d + m

    @override
    def shared_counts(self, site: Site) -> Mapping[Hashable, int]:
        return {Factors.alike_for(self.n): self.n**3}

    @override
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> "HypercomplexBottleneck":
        d, m = site.width_out, self._width(site)
        factors = Factors(self.n, generator)
        down = HypercomplexLinear(d, m, self.n, self.rank, generator)
        up = HypercomplexLinear(m, d, self.n, self.rank, generator)
        nn.init.zeros_(up.right)
        return HypercomplexBottleneck(factors, down, self.activation, up)

    def _width(self, site: Site) -> int:
        nearest = max(1, round(site.width_out / 32 / self.n)) * self.n
        return nearest if self.width is None else self.width


class Factors(Shared):
    """The n matrices A_i as `matrices`, of shape (n, n, n), that all adapters of a rule share."""

    def __init__(self, n: int, generator: torch.Generator) -> None:
        super().__init__()
        self.alike = self.alike_for(n)
        self.matrices = nn.Parameter(torch.empty(n, n, n).normal_(std=RULE_DEVIATION, generator=generator))

    @staticmethod
    def alike_for(n: int) -> Hashable:
        """Returns what those of equally many matrices are alike in."""
        return "hypercomplex factors", n

    @override
    def forward(self) -> Float[Tensor, "n n n"]:
        return self.matrices.clone()


class HypercomplexLinear(nn.Module):
    """x W + bias: `left` s is (n, d_in / n, r), `right` t (n, r, d_out / n), and `bias` of shape (d_out).

    W is never formed: x is split into n parts, each goes through s_i, A_i mixes the parts,
    and t_i gives n parts of the output.
    """

    def __init__(self, d_in: int, d_out: int, n: int, r: int, generator: torch.Generator) -> None:
        super().__init__()
        self.left = nn.Parameter(_glorot(n, d_in // n, r, generator))
        self.right = nn.Parameter(_glorot(n, r, d_out // n, generator))
        self.bias = nn.Parameter(torch.zeros(d_out))

    @override
    def forward(
        self, x: Float[Tensor, "*batch d_in"], factors: Float[Tensor, "n n n"]
    ) -> Float[Tensor, "*batch d_out"]:
        parts = x.unflatten(-1, (factors.shape[0], -1))
        narrow = torch.einsum("...pa,iar->...pir", parts, self.left)
        mixed = torch.einsum("...pir,ipq->...qir", narrow, factors)
        return torch.einsum("...qir,irb->...qb", mixed, self.right).flatten(-2) + self.bias


class HypercomplexBottleneck(nn.Module):
    """y + up(activation(down(y))), with y of shape (..., d).

    Identity at initialisation because the t_i of `up` start at zero; the authors start all
    factors at random.
    """

    def __init__(
        self, factors: Factors, down: HypercomplexLinear, activation: Activation, up: HypercomplexLinear
    ) -> None:
        super().__init__()
        self.factors = factors
        self.down = down
        self.activation = ACTIVATIONS[activation]()
        self.up = up

    @override
    def forward(self, y: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        factors = self.factors()
        return y + self.up(self.activation(self.down(y, factors)), factors)


def _glorot(n: int, d_in: int, d_out: int, generator: torch.Generator) -> Tensor:
    """Returns n uniform matrices of shape (d_in, d_out), bounded as the authors' are."""
    bound = (6 / (d_in + d_out)) ** 0.5
    return torch.empty(n, d_in, d_out).uniform_(-bound, bound, generator=generator)
