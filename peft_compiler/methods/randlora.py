"""RandLoRA: an update of full rank, a trained combination of random low-rank matrices.

Albert et al. 2025, "RandLoRA: Full-rank parameter-efficient fine-tuning of large models",
https://arxiv.org/abs/2502.00987, section 4.2, equation 4: W + scale · Σ_j B_j Λ_j A Γ_j over
n = min(out, in) / r matrices, rounded up. The bases B_j of shape (max(out, in), r) and A of shape
(r, min(out, in)) are random, frozen and the same at every site of a shape; the diagonals Λ_j and
Γ_j are trained. A stands on the narrow side: where the output is, all is transposed.
"""

import math
from collections.abc import Mapping
from typing import ClassVar, Literal, Self

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

UNIT_VARIANCE = math.sqrt(3)
"""Bound of a uniform distribution whose variance is 1, as the authors' code normalises the bases."""


class RandLoRA(Method, frozen=True):
    """Spec of one combination of random bases.

    >>> RandLoRA(r=16).kind
    'randlora'
    """

    paper: ClassVar[str] = "arXiv:2502.00987"
    attaches: ClassVar[Mapping[Role, Wiring]] = dict.fromkeys(sorted(PROJECTIONS), Wiring.BESIDE)
    spoken: ClassVar[tuple[str, ...]] = ("randlora",)
    spoken_fields: ClassVar[Mapping[str, str]] = {"rank": "r"}
    default_roles: ClassVar[tuple[Role, ...]] = (Role.QUERY, Role.VALUE)
    identity: ClassVar[bool] = True
    merge: ClassVar[MergeRule | NoMerge] = fold

    kind: Literal["randlora"] = "randlora"
    r: int = Field(default=32, gt=0, description="Rank of each basis; the smaller, the more are trained.")
    alpha: Factor | None = Field(
        default=None,
        description="The update is scaled by alpha / r; 20 r if not given, as in the authors' code.",
    )
    seed: int = Field(default=0, ge=0, description="What the bases are drawn from, with their shapes.")

    @override
    def at(self, site: Site) -> Self:
        return self if self.alpha is not None else self.model_copy(update={"alpha": 20.0 * self.r})

    @override
    def wiring(self, site: Site) -> Wiring:
        return Wiring.BESIDE if form_of(site) in ("linear", "transposed") else Wiring.ON_WEIGHT

    @override
    def parameter_count(self, site: Site) -> int:
        narrow = min(site.width_out, fan_in_of(site))
        return math.prod(stack_of(site)) * self._bases(narrow) * (self.r + narrow)

    @override
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> "CombinedBases | Added":
        narrow, wide = sorted((site.width_out, fan_in_of(site)))
        n, stack = self._bases(narrow), stack_of(site)
        pair = FrozenPair(
            self.seed, Uniform((self.r, narrow), UNIT_VARIANCE), Uniform((wide, n * self.r), UNIT_VARIANCE)
        )
        alpha = 20 * self.r if self.alpha is None else self.alpha
        # As in the authors' code: gamma is small, because the bases have unit variance.
        gamma = torch.full((*stack, n, narrow), 1 / max(n, narrow))
        from_narrow = fan_in_of(site) == narrow
        update = CombinedBases(torch.zeros(*stack, n, self.r), gamma, pair, alpha / self.r, from_narrow)
        return update if self.wiring(site) is Wiring.BESIDE else Added(site, update)

    def _bases(self, narrow: int) -> int:
        return math.ceil(narrow / self.r)


class CombinedBases(Update):
    """scale · Σ_j B_j Λ_j A Γ_j x, or its transpose, with n bases side by side in one matrix.

    `lambdas` has the shape (*experts, n, r) and `gamma` (*experts, n, min(out, in)). Identity at
    initialisation because `lambdas` is zero. Only these two are saved.
    """

    def __init__(
        self, lambdas: Tensor, gamma: Tensor, pair: FrozenPair, scale: float, from_narrow: bool
    ) -> None:
        super().__init__()
        self.lambdas = nn.Parameter(lambdas)
        self.gamma = nn.Parameter(gamma)
        self.pair = pair
        self.scale = scale
        self.from_narrow = from_narrow

    def factors(self) -> tuple[Tensor, Tensor]:
        """Returns what the input, and then the output of that, is multiplied by."""
        bases = self.lambdas.unsqueeze(-1) * self.pair.down * self.gamma.unsqueeze(-2)
        narrow = self.scale * bases.flatten(-3, -2)
        return (narrow, self.pair.up) if self.from_narrow else (self.pair.up.mT, narrow.mT)

    @override
    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        first, second = self.factors()
        return functional.linear(functional.linear(x, first), second)

    @override
    def delta(self) -> Float[Tensor, "*experts d_out d_in"]:
        first, second = self.factors()
        return second @ first
