"""DoRA: the direction of a weight is updated in low rank, its magnitude by itself.

Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", https://arxiv.org/abs/2402.09353,
section 4.1, equation 5: m (W + scale · B A) / ||W + scale · B A||, with A of shape (r, in), B of
shape (out, r), and one norm and one entry of m for each output, as in the authors' code. In the
gradient the norm counts as a constant (section 4.3).
"""

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from peft_compiler.methods._features import precise
from peft_compiler.methods._low_rank import grouped_product
from peft_compiler.methods._method import Factor, MergeRule, Method, NoMerge, Wiring
from peft_compiler.methods._weights import (
    WeightMap,
    fan_in_of,
    fold,
    groups_of,
    matrix_of,
    rank_problems,
    stack_of,
    taken,
)
from peft_compiler.site import PROJECTIONS, Role, Site


class DoRA(Method, frozen=True):
    """Spec of one decomposed low-rank update.

    >>> DoRA(r=4).kind
    'dora'
    """

    paper: ClassVar[str] = "arXiv:2402.09353"
    attaches: ClassVar[Mapping[Role, Wiring]] = dict.fromkeys(sorted(PROJECTIONS), Wiring.ON_WEIGHT)
    spoken: ClassVar[tuple[str, ...]] = ("dora",)
    spoken_fields: ClassVar[Mapping[str, str]] = {"rank": "r"}
    default_roles: ClassVar[tuple[Role, ...]] = (Role.QUERY, Role.KEY, Role.VALUE, Role.UP, Role.DOWN)
    identity: ClassVar[bool] = True
    merge: ClassVar[MergeRule | NoMerge] = fold

    kind: Literal["dora"] = "dora"
    r: int = Field(default=8, gt=0, description="Rank of the update of the direction.")
    alpha: Factor | None = Field(
        default=None,
        description="The update is scaled by alpha / r; r if not given.",
    )

    @override
    def at(self, site: Site) -> Self:
        return self if self.alpha is not None else self.model_copy(update={"alpha": float(self.r)})

    @override
    def problems(self, site: Site) -> Iterator[str]:
        yield from super().problems(site)
        if site.role in self.attaches:
            yield from rank_problems(self.r, site)

    @override
    def parameter_count(self, site: Site) -> int:
        factors = self.r * (fan_in_of(site) + site.width_out // groups_of(site))
        return math.prod(stack_of(site)) * (factors + site.width_out)

    @override
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> "DoRAWeight":
        fan_in, stack = fan_in_of(site), stack_of(site)
        # Gaussian as in LoRA, with the variance of kaiming_uniform_(a=sqrt(5)).
        down = torch.empty(*stack, self.r, fan_in).normal_(std=(3 * fan_in) ** -0.5, generator=generator)
        up = torch.zeros(*stack, site.width_out, self.r // groups_of(site))
        magnitude = taken(norms(precise(matrix_of(site, host))))
        alpha = self.r if self.alpha is None else self.alpha
        return DoRAWeight(site, down, up, magnitude, alpha / self.r)


class DoRAWeight(WeightMap):
    """m (W + scale · B A) / ||W + scale · B A||, for W of shape (*experts, out, in).

    `down` is A of shape (*experts, r, in), `up` is B of shape (*experts, out, r / groups), and
    `magnitude` is m of shape (*experts, out). Identity at initialisation because B is zero and
    m holds the norms of W, computed as they are computed here. No dropout: the norm is that of
    one weight for all tokens.
    """

    faster: ClassVar[tuple[str, ...]] = ("up",)

    def __init__(self, site: Site, down: Tensor, up: Tensor, magnitude: Tensor, scale: float) -> None:
        super().__init__(site)
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(up)
        self.magnitude = nn.Parameter(magnitude)
        self.scale = scale
        self.groups = groups_of(site)

    @override
    def mapped(self, matrix: Float[Tensor, "*experts d_out d_in"]) -> Float[Tensor, "*experts d_out d_in"]:
        product = grouped_product(self.up, self.down, self.groups)
        direction = matrix + self.scale * product
        return (self.magnitude / norms(direction.detach())).unsqueeze(-1) * direction


def norms(matrix: Float[Tensor, "*experts d_out d_in"]) -> Float[Tensor, "*experts d_out"]:
    """Returns the length of each row; of a row of zeros the smallest number, by which one can divide.

    Rounded once: in whatever type m is kept, it holds what comes out here.
    """
    lengths = torch.linalg.vector_norm(precise(matrix), dim=-1).to(matrix.dtype)
    return lengths.clamp_min(torch.finfo(matrix.dtype).tiny)
