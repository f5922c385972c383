"""OFT: the inputs of a weight are rotated, block by block.

Qiu et al. 2023, "Controlling Text-to-Image Diffusion by Orthogonal Finetuning",
https://arxiv.org/abs/2306.07280, sections 3.2 and 3.3, equations 2 and 3: W R^T with
R = diag(R_1, ..., R_k), each R_i = (I - Q_i) (I + Q_i)^-1 of shape (b, b) with a skew-symmetric
Q_i, of which only what is above the diagonal is trained. (The paper writes -Q_i for Q_i.) Angles
between the rows of W stay as they are.
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


class OFT(Method, frozen=True):
    """Spec of one block-diagonal rotation.

    >>> OFT(block_size=16).kind
    'oft'
    """

    paper: ClassVar[str] = "arXiv:2306.07280"
    attaches: ClassVar[Mapping[Role, Wiring]] = dict.fromkeys(sorted(PROJECTIONS), Wiring.ON_WEIGHT)
    spoken: ClassVar[tuple[str, ...]] = ("oft",)
    default_roles: ClassVar[tuple[Role, ...]] = (Role.QUERY, Role.VALUE)
    identity: ClassVar[bool] = True
    merge: ClassVar[MergeRule | NoMerge] = fold

    kind: Literal["oft"] = "oft"
    block_size: int = Field(default=32, gt=1, description="Inputs that are rotated together (b).")
    shared: bool = Field(default=False, description="Whether all blocks share one rotation.")

    @override
    def problems(self, site: Site) -> Iterator[str]:
        yield from super().problems(site)
        if site.role in self.attaches and fan_in_of(site) % self.block_size:
            yield (
                f"block_size={self.block_size} does not divide the {fan_in_of(site)} inputs of a row: "
                "take a divisor"
            )

    @override
    def parameter_count(self, site: Site) -> int:
        blocks = 1 if self.shared else fan_in_of(site) // self.block_size
        return math.prod(stack_of(site)) * blocks * entries_of(self.block_size)

    @override
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> "Rotation":
        blocks = 1 if self.shared else fan_in_of(site) // self.block_size
        return Rotation(site, blocks, self.block_size)


class Rotation(WeightMap):
    """W R^T, with the entries of Q as `skew` of shape (*experts, blocks, b (b - 1) / 2).

    Identity at initialisation because Q starts at zero, and R at the identity matrix.
    """

    def __init__(self, site: Site, blocks: int, block_size: int) -> None:
        super().__init__(site)
        self.skew = nn.Parameter(torch.zeros(*stack_of(site), blocks, entries_of(block_size)))
        self.block_size = block_size
        self.repeats = fan_in_of(site) // block_size // blocks

    @override
    def mapped(self, matrix: Float[Tensor, "*experts d_out d_in"]) -> Float[Tensor, "*experts d_out d_in"]:
        rotation = rotations(self.skew, self.block_size)
        return rotated(matrix, rotation.repeat_interleave(self.repeats, dim=-3))
