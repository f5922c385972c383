"""AdaLoRA: an update in the form of a singular value decomposition, whose rank is cut where it matters least.

Zhang et al. 2023, "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning",
https://arxiv.org/abs/2303.10512, section 3.1, equation 3: W + alpha / r · P Λ Q, with P of shape
(out, r), a diagonal Λ of r values and Q of shape (r, in). While it is trained,
`peft_compiler.RankAllocator` sets the values that matter least to zero.
"""

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from peft_compiler.methods._method import Factor, MergeRule, Method, NoMerge, Wiring
from peft_compiler.methods._weights import Added, Update, fan_in_of, fold, form_of, stack_of
from peft_compiler.site import PROJECTIONS, Role, Site


class AdaLoRA(Method, frozen=True):
    """Spec of one update of adaptive rank.

    >>> AdaLoRA(r=12, target_r=4).kind
    'adalora'
    """

    paper: ClassVar[str] = "arXiv:2303.10512"
    attaches: ClassVar[Mapping[Role, Wiring]] = dict.fromkeys(sorted(PROJECTIONS), Wiring.BESIDE)
    spoken: ClassVar[tuple[str, ...]] = ("adalora",)
    spoken_fields: ClassVar[Mapping[str, str]] = {"rank": "r"}
    default_roles: ClassVar[tuple[Role, ...]] = (Role.QUERY, Role.VALUE)
    identity: ClassVar[bool] = True
    merge: ClassVar[MergeRule | NoMerge] = fold

    kind: Literal["adalora"] = "adalora"
    r: int = Field(default=12, gt=0, description="Rank at the beginning.")
    target_r: int | None = Field(
        default=None,
        gt=0,
        description="Rank in the end, on average over the sites; 2/3 of r if not given, as in the paper.",
    )
    alpha: Factor | None = Field(
        default=None,
        description="The update is scaled by alpha / r; r if not given.",
    )

    @model_validator(mode="after")
    def _target_is_below_the_start(self) -> Self:
        if self.target_r is not None and self.target_r > self.r:
            raise ValueError(f"target_r={self.target_r} is above r={self.r}, from which ranks are only cut")
        return self

    @override
    def at(self, site: Site) -> Self:
        target = max(1, 2 * self.r // 3) if self.target_r is None else self.target_r
        alpha = float(self.r) if self.alpha is None else self.alpha
        return self.model_copy(update={"target_r": target, "alpha": alpha})

    @override
    def problems(self, site: Site) -> Iterator[str]:
        yield from super().problems(site)
        if site.role not in self.attaches:
            return
        out, fan_in = site.width_out, fan_in_of(site)
        if self.r > min(out, fan_in):
            yield f"r={self.r} exceeds the rank of a {out} x {fan_in} weight: take r <= {min(out, fan_in)}"

    @override
    def wiring(self, site: Site) -> Wiring:
        return Wiring.BESIDE if form_of(site) in ("linear", "transposed") else Wiring.ON_WEIGHT

    @override
    def parameter_count(self, site: Site) -> int:
        return math.prod(stack_of(site)) * self.r * (site.width_out + fan_in_of(site) + 1)

    @override
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> "Triplets | Added":
        stack, filled = stack_of(site), self.at(site)
        assert filled.target_r is not None
        assert filled.alpha is not None
        # As in the authors' code; the paper says Gaussian.
        left = torch.empty(*stack, site.width_out, self.r).normal_(std=0.02, generator=generator)
        right = torch.empty(*stack, self.r, fan_in_of(site)).normal_(std=0.02, generator=generator)
        update = Triplets(left, torch.zeros(*stack, self.r), right, filled.alpha / self.r, filled.target_r)
        return update if self.wiring(site) is Wiring.BESIDE else Added(site, update)


class Triplets(Update):
    """scale · P Λ Q x: r triplets of a column of P, a value of Λ and a row of Q.

    `left` is P of shape (*experts, out, r), `values` the diagonal of Λ and `right` Q of shape
    (*experts, r, in). Identity at initialisation because all values are zero. `kept`, of shape
    (*experts, r), says which triplets are still in use; it is saved, and so are the ranks.
    """

    kept: Tensor

    def __init__(self, left: Tensor, values: Tensor, right: Tensor, scale: float, target: int) -> None:
        super().__init__()
        self.left = nn.Parameter(left)
        self.values = nn.Parameter(values)
        self.right = nn.Parameter(right)
        self.register_buffer("kept", torch.ones(values.shape, dtype=torch.bool))
        self.scale = scale
        self.target = target

    @override
    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        return functional.linear(self.scale * self.values * functional.linear(x, self.right), self.left)

    @override
    def delta(self) -> Float[Tensor, "*experts d_out d_in"]:
        return self.left @ (self.scale * self.values.unsqueeze(-1) * self.right)

    def keep(self, kept: Tensor) -> None:
        """Leaves only some triplets in use, in place: the values of the others become zero."""
        with torch.no_grad():
            self.kept.copy_(kept)
            self.values.mul_(self.kept)

    def penalty(self) -> Tensor:
        """Returns how far P and Q are from orthogonal: ||P^T P - I||² + ||Q Q^T - I||² (equation 4)."""
        identity = torch.eye(self.left.shape[-1], dtype=self.left.dtype, device=self.left.device)
        products = self.left.mT @ self.left, self.right @ self.right.mT
        return sum(((product - identity).square().sum() for product in products), self.left.new_zeros(()))
