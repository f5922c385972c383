"""HRA: a weight is multiplied by Householder reflections of its inputs.

Yuan et al. 2024, "Bridging The Gap between Low-rank and Orthogonal Adaptation via Householder
Reflection Adaptation", https://arxiv.org/abs/2405.17484, section 3.1, equation 1: W H_1 ... H_r with
H_i = I - 2 · u_i u_i^T / ||u_i||², and r vectors u_i of shape (in), of which each two that follow
one another start equal.
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
from peft_compiler.methods._weights import WeightMap, fan_in_of, fold, kaiming, stack_of
from peft_compiler.site import PROJECTIONS, Role, Site


class HRA(Method, frozen=True):
    """Spec of one chain of reflections.

    >>> HRA(r=4).kind
    'hra'
    """

    paper: ClassVar[str] = "arXiv:2405.17484"
    attaches: ClassVar[Mapping[Role, Wiring]] = dict.fromkeys(sorted(PROJECTIONS), Wiring.ON_WEIGHT)
    spoken: ClassVar[tuple[str, ...]] = ("hra",)
    spoken_fields: ClassVar[Mapping[str, str]] = {"rank": "r"}
    default_roles: ClassVar[tuple[Role, ...]] = (Role.QUERY, Role.VALUE)
    identity: ClassVar[bool] = True
    merge: ClassVar[MergeRule | NoMerge] = fold

    kind: Literal["hra"] = "hra"
    r: int = Field(
        default=8, gt=0, multiple_of=2, description="Number of reflections, even: they start in equal pairs."
    )

    @override
    def problems(self, site: Site) -> Iterator[str]:
        yield from super().problems(site)
        if site.role in self.attaches and self.r > fan_in_of(site):
            yield f"r={self.r} exceeds the {fan_in_of(site)} inputs of a row: take r <= {fan_in_of(site)}"

    @override
    def parameter_count(self, site: Site) -> int:
        return math.prod(stack_of(site)) * self.r * fan_in_of(site)

    @override
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> "Reflections":
        half = kaiming(generator, *stack_of(site), self.r // 2, fan_in_of(site))
        return Reflections(site, half.repeat_interleave(2, dim=-2))


class Reflections(WeightMap):
    """W H_1 ... H_r, with `vectors` of shape (*experts, r, in).

    Identity at initialisation because two equal reflections undo one another. To be that bit
    for bit, each two are applied as what they add to W: with unit vectors v and w,
    W H_v H_w = W + W v (4 (v · w) w - 2 v)^T - 2 W w w^T, whose last two terms are then equal
    numbers.
    """

    def __init__(self, site: Site, vectors: Tensor) -> None:
        super().__init__(site)
        self.vectors = nn.Parameter(vectors)

    @override
    def mapped(self, matrix: Float[Tensor, "*experts d_out d_in"]) -> Float[Tensor, "*experts d_out d_in"]:
        vectors = self.vectors.unsqueeze(-1).unbind(-3)
        for first, second in zip(vectors[::2], vectors[1::2], strict=True):
            squares = (first * first).sum(-2, keepdim=True), (second * second).sum(-2, keepdim=True)
            cosine = (first * second).sum(-2, keepdim=True) / (squares[0] * squares[1]).sqrt()
            v, w = first / squares[0].sqrt(), second / squares[1].sqrt()
            along_v = (matrix @ v) * (4 * cosine * w - 2 * v).mT
            along_w = (matrix @ w) * (2 * w).mT
            matrix = matrix + (along_v - along_w)
        return matrix
