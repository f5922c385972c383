"""LoKr: the Kronecker product of two small matrices is added to a weight.

Yeh et al. 2023, "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model
Evaluation", https://arxiv.org/abs/2309.14859, section 3.2, equation 4: W + alpha / r · C ⊗ (B A),
where C has the shape (a, c) and B A the shape (out / a, in / c). Where r is no less than half of
the longer side, a matrix is kept whole instead of as a product.
"""

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from peft_compiler.methods._method import Factor, MergeRule, Method, NoMerge, Wiring
from peft_compiler.methods._weights import (
    WeightSum,
    fan_in_of,
    fold,
    form_of,
    joined_as_sum,
    kaiming,
    stack_of,
    wiring_of_sum,
)
from peft_compiler.site import PROJECTIONS, Role, Site


class LoKr(Method, frozen=True):
    """Spec of one Kronecker product.

    >>> LoKr(r=4).kind
    'lokr'
    """

    paper: ClassVar[str] = "arXiv:2309.14859"
    attaches: ClassVar[Mapping[Role, Wiring]] = dict.fromkeys(sorted(PROJECTIONS), Wiring.ON_WEIGHT)
    spoken: ClassVar[tuple[str, ...]] = ("lokr",)
    spoken_fields: ClassVar[Mapping[str, str]] = {"rank": "r"}
    default_roles: ClassVar[tuple[Role, ...]] = (Role.QUERY, Role.VALUE)
    identity: ClassVar[bool] = True
    merge: ClassVar[MergeRule | NoMerge] = fold

    kind: Literal["lokr"] = "lokr"
    r: int = Field(default=8, gt=0, description="Rank of a matrix that is kept as a product.")
    alpha: Factor | None = Field(
        default=None,
        description="The product is scaled by alpha / r; r if not given.",
    )
    factor: int | None = Field(
        default=None,
        gt=0,
        description="Rows and columns of the first matrix; those that come closest to a square if not given.",
    )
    decompose_both: bool = Field(
        default=False, description="Whether the first matrix may be kept as a product too."
    )

    @override
    def at(self, site: Site) -> Self:
        return self if self.alpha is not None else self.model_copy(update={"alpha": float(self.r)})

    @override
    def problems(self, site: Site) -> Iterator[str]:
        yield from super().problems(site)
        if site.role not in self.attaches or self.factor is None:
            return
        for size, what in ((site.width_out, "outputs"), (_channels(site), "inputs")):
            if size % self.factor:
                yield f"factor={self.factor} does not divide {size} {what}: take a divisor of both widths"

    @override
    def parameter_count(self, site: Site) -> int:
        shapes = ((a + b) * self.r if low else a * b for (a, b), low in self._shapes(site))
        return math.prod(stack_of(site)) * sum(shapes)

    @override
    def wiring(self, site: Site) -> Wiring:
        return wiring_of_sum(site)

    @override
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> nn.Module:
        first, second = self._shapes(site)
        left, right = self._matrix(site, *first, generator), self._matrix(site, *second, generator)
        left.start_at_zero()
        alpha = self.r if self.alpha is None else self.alpha
        return joined_as_sum(KroneckerProduct(site, left, right, alpha / self.r), site)

    def _matrix(
        self, site: Site, shape: tuple[int, int], low_rank: bool, generator: torch.Generator
    ) -> "WholeMatrix | LowRankMatrix":
        """Returns a matrix drawn as peft and LyCORIS draw it."""
        stack, (rows, columns) = stack_of(site), shape
        if not low_rank:
            return WholeMatrix(kaiming(generator, *stack, rows, columns))
        up, down = kaiming(generator, *stack, rows, self.r), kaiming(generator, *stack, self.r, columns)
        return LowRankMatrix(up, down)

    def _shapes(self, site: Site) -> tuple[tuple[tuple[int, int], bool], tuple[tuple[int, int], bool]]:
        """Returns the shape of each matrix, and whether it is kept as a product."""
        a, c = self.factor or nearest_root(site.width_out), self.factor or nearest_root(_channels(site))
        b, d = site.width_out // a, fan_in_of(site) // c
        first, second = self.decompose_both and self.r < max(a, c) / 2, self.r < max(b, d) / 2
        return ((a, c), first), ((b, d), second)


class WholeMatrix(nn.Module):
    """A trained matrix, `values` of shape (*experts, rows, columns)."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values)

    @override
    def forward(self) -> Float[Tensor, "*experts rows columns"]:
        return self.values.clone()

    def start_at_zero(self) -> None:
        """Sets the matrix to zero, in place."""
        nn.init.zeros_(self.values)


class LowRankMatrix(nn.Module):
    """A matrix trained as the product of `up` (*experts, rows, r) and `down` (*experts, r, columns)."""

    def __init__(self, up: Tensor, down: Tensor) -> None:
        super().__init__()
        self.up = nn.Parameter(up)
        self.down = nn.Parameter(down)

    @override
    def forward(self) -> Float[Tensor, "*experts rows columns"]:
        return self.up @ self.down

    def start_at_zero(self) -> None:
        """Sets the product to zero by one of its factors, in place."""
        nn.init.zeros_(self.up)


class KroneckerProduct(WeightSum):
    """W + scale · C ⊗ D, with `left` for C of shape (*experts, a, c) and `right` for D.

    Identity at initialisation because C starts at zero; D is random, so that C has a gradient
    from the first step on.
    """

    def __init__(
        self,
        site: Site,
        left: WholeMatrix | LowRankMatrix,
        right: WholeMatrix | LowRankMatrix,
        scale: float,
    ) -> None:
        super().__init__(site)
        self.left = left
        self.right = right
        self.scale = scale

    @override
    def delta(self) -> Float[Tensor, "*experts d_out d_in"]:
        product = torch.einsum("...ac,...bd->...abcd", self.scale * self.left(), self.right())
        return product.flatten(-2).flatten(-3, -2)


def nearest_root(size: int) -> int:
    """Returns the largest divisor of a number that is not above its square root.

    >>> nearest_root(32), nearest_root(768), nearest_root(7)
    (4, 24, 1)
    """
    return next(divisor for divisor in range(math.isqrt(size), 0, -1) if size % divisor == 0)


def _channels(site: Site) -> int:
    """Returns what the columns of the first matrix divide: a kernel is never cut through."""
    return site.shape[1] if form_of(site) == "conv" else site.width_in
