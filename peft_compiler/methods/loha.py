"""LoHa: the elementwise product of two low-rank matrices is added to a weight.

Hyeon-Woo et al. 2021, "FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated
Learning", https://arxiv.org/abs/2108.06098, section 2.2, proposition 1, brought to fine-tuning in
LyCORIS, https://arxiv.org/abs/2309.14859, section 3.2, equation 3:
W + alpha / r · (B1 A1) ⊙ (B2 A2), with A of shape (r, in) and B of shape (out, r). The update has a
rank of up to r².
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
    joined_as_sum,
    kaiming,
    stack_of,
    wiring_of_sum,
)
from peft_compiler.site import PROJECTIONS, Role, Site


class LoHa(Method, frozen=True):
    """Spec of one Hadamard product.

    >>> LoHa(r=4).kind
    'loha'
    """

    paper: ClassVar[str] = "arXiv:2108.06098"
    attaches: ClassVar[Mapping[Role, Wiring]] = dict.fromkeys(sorted(PROJECTIONS), Wiring.ON_WEIGHT)
    spoken: ClassVar[tuple[str, ...]] = ("loha",)
    spoken_fields: ClassVar[Mapping[str, str]] = {"rank": "r"}
    default_roles: ClassVar[tuple[Role, ...]] = (Role.QUERY, Role.VALUE)
    identity: ClassVar[bool] = True
    merge: ClassVar[MergeRule | NoMerge] = fold

    kind: Literal["loha"] = "loha"
    r: int = Field(default=8, gt=0, description="Rank of each of the two matrices.")
    alpha: Factor | None = Field(
        default=None,
        description="The product is scaled by alpha / r; r if not given.",
    )

    @override
    def at(self, site: Site) -> Self:
        return self if self.alpha is not None else self.model_copy(update={"alpha": float(self.r)})

    @override
    def problems(self, site: Site) -> Iterator[str]:
        yield from super().problems(site)
        if site.role not in self.attaches:
            return
        out, fan_in = site.width_out, fan_in_of(site)
        if self.r > min(out, fan_in):
            yield f"r={self.r} exceeds the rank of a {out} x {fan_in} weight: take r <= {min(out, fan_in)}"

    @override
    def parameter_count(self, site: Site) -> int:
        return math.prod(stack_of(site)) * 2 * self.r * (site.width_out + fan_in_of(site))

    @override
    def wiring(self, site: Site) -> Wiring:
        return wiring_of_sum(site)

    @override
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> nn.Module:
        alpha = self.r if self.alpha is None else self.alpha
        return joined_as_sum(HadamardProduct(site, self.r, alpha / self.r, generator), site)


class HadamardProduct(WeightSum):
    """W + scale · (B1 A1) ⊙ (B2 A2).

    `up_1` and `up_2` are B1 and B2 of shape (*experts, out, r), `down_1` and `down_2` A1 and A2 of
    shape (*experts, r, in). Identity at initialisation because `down_2` starts at zero. The others
    are drawn as FedPara proposes (He initialisation), so that `down_2` has a gradient from the
    first step on.
    """

    def __init__(self, site: Site, r: int, scale: float, generator: torch.Generator) -> None:
        super().__init__(site)
        stack, out, fan_in = stack_of(site), site.width_out, fan_in_of(site)
        self.up_1 = nn.Parameter(kaiming(generator, *stack, out, r))
        self.down_1 = nn.Parameter(kaiming(generator, *stack, r, fan_in))
        self.up_2 = nn.Parameter(kaiming(generator, *stack, out, r))
        self.down_2 = nn.Parameter(torch.zeros(*stack, r, fan_in))
        self.scale = scale

    @override
    def delta(self) -> Float[Tensor, "*experts d_out d_in"]:
        return self.scale * (self.up_1 @ self.down_1) * (self.up_2 @ self.down_2)
