"""BOFT: the inputs of a weight are rotated by butterfly factors, and its outputs scaled.

Liu et al. 2023, "Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization",
https://arxiv.org/abs/2311.06243, section 4: diag(s) W (R_m ... R_1)^T. Each factor R_i is a
block-diagonal rotation of OFT, with blocks of size b, between features that are b / 2 · 2^(i-1)
apart, so that m factors mix b · 2^(m-1) features. The scale s, of shape (out), is that of the
authors' code.
"""

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from peft_compiler.methods._method import MergeRule, Method, NoMerge, Wiring
from peft_compiler.methods._rotations import entries_of, rotated, rotations
from peft_compiler.methods._weights import WeightMap, fan_in_of, fold, stack_of
from peft_compiler.site import PROJECTIONS, Role, Site


class BOFT(Method, frozen=True):
    """Spec of one butterfly of rotations.

    >>> BOFT(block_size=8, factors=2).kind
    'boft'
    """

    paper: ClassVar[str] = "arXiv:2311.06243"
    attaches: ClassVar[Mapping[Role, Wiring]] = dict.fromkeys(sorted(PROJECTIONS), Wiring.ON_WEIGHT)
    spoken: ClassVar[tuple[str, ...]] = ("boft",)
    default_roles: ClassVar[tuple[Role, ...]] = (Role.QUERY, Role.VALUE)
    identity: ClassVar[bool] = True
    merge: ClassVar[MergeRule | NoMerge] = fold

    kind: Literal["boft"] = "boft"
    block_size: int = Field(default=4, gt=1, description="Inputs that a factor rotates together (b).")
    factors: int = Field(
        default=1, gt=0, description="Number of butterfly factors (m); one is OFT's rotation."
    )

    @override
    def problems(self, site: Site) -> Iterator[str]:
        yield from super().problems(site)
        if site.role not in self.attaches:
            return
        limit = fan_in_of(site).bit_length()
        if self.factors > limit:
            yield f"factors={self.factors} mix more than the {fan_in_of(site)} inputs of a row: take less"
            return
        mixed = self.block_size * 2 ** (self.factors - 1)
        if fan_in_of(site) % mixed:
            yield (
                f"block_size={self.block_size} and factors={self.factors} mix {mixed} inputs, which does not "
                f"divide the {fan_in_of(site)} inputs of a row: take less of either"
            )
        if self.factors > 1 and self.block_size % 2:
            yield f"block_size={self.block_size} is odd, and a butterfly pairs half blocks: take an even one"

    @override
    def parameter_count(self, site: Site) -> int:
        blocks = fan_in_of(site) // self.block_size
        rotation = self.factors * blocks * entries_of(self.block_size)
        return math.prod(stack_of(site)) * (rotation + site.width_out)

    @override
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> "Butterfly":
        return Butterfly(site, self.factors, self.block_size)


class Butterfly(WeightMap):
    """diag(s) W (R_m ... R_1)^T.

    `skew` has the shape (*experts, m, blocks, b (b - 1) / 2), as in OFT, and `scale` is s of
    shape (*experts, out). Identity at initialisation because `skew` is zero and `scale` one.
    """

    def __init__(self, site: Site, factors: int, block_size: int) -> None:
        super().__init__(site)
        stack, blocks = stack_of(site), fan_in_of(site) // block_size
        self.skew = nn.Parameter(torch.zeros(*stack, factors, blocks, entries_of(block_size)))
        self.scale = nn.Parameter(torch.ones(*stack, site.width_out))
        self.factors = factors
        self.block_size = block_size

    @override
    def mapped(self, matrix: Float[Tensor, "*experts d_out d_in"]) -> Float[Tensor, "*experts d_out d_in"]:
        factors = rotations(self.skew, self.block_size).unbind(-4)
        for i, rotation in enumerate(factors):
            distance, half = 2**i, self.block_size // 2
            # Half blocks that are so many half blocks apart come to stand side by side, and go back.
            apart, beside = (-1, 2, distance, half), (-1, distance, 2, half)
            paired = _swapped(matrix, apart) if i else matrix
            turned = rotated(paired, rotation)
            matrix = _swapped(turned, beside) if i else turned
        return self.scale.unsqueeze(-1) * matrix


def _swapped(matrix: Tensor, sizes: tuple[int, int, int, int]) -> Tensor:
    """Returns the columns of a matrix in another order: laid out as `sizes`, the middle two swapped."""
    return matrix.unflatten(-1, sizes).transpose(-3, -2).flatten(-4)
