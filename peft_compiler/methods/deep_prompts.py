"""Deep prompts: trainable keys and values in front of those that every attention computes.

Liu et al. 2021, "P-Tuning v2", https://arxiv.org/abs/2110.07602, section 3.2; for each
attention keys and values of shape (key heads, length, head width). The reparametrisation,
which section 3.3 finds to help some tasks and to hurt others, is that of prefix-tuning.
"""

from collections.abc import Hashable, Iterator, Mapping
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import nn
from typing_extensions import override

from peft_compiler.methods._method import MergeRule, Method, NoMerge, Wiring
from peft_compiler.methods._prompts import (
    MLP_WIDTH,
    Prompts,
    Reparametrised,
    Trunk,
    longer_than_any_input,
    mlp_counts,
    width_of,
)
from peft_compiler.site import Role, Site


class DeepPrompts(Method, frozen=True):
    """Spec of the prompts of one attention.

    >>> DeepPrompts().length
    20
    """

    paper: ClassVar[str] = "arXiv:2110.07602"
    attaches: ClassVar[Mapping[Role, Wiring]] = {Role.ATTENTION_CORE: Wiring.EXTEND_KV}
    spoken: ClassVar[tuple[str, ...]] = ("deep prompt", "p-tuning v2 prompt")
    default_roles: ClassVar[tuple[Role, ...]] = (Role.ATTENTION_CORE,)
    default_cross: ClassVar[bool | None] = False
    identity: ClassVar[bool] = False
    merge: ClassVar[MergeRule | NoMerge] = NoMerge(
        "no weight of the base adds keys and values to an attention"
    )

    kind: Literal["deep_prompts"] = "deep_prompts"
    length: int = Field(default=20, gt=0, description="Number of prompt positions.")
    scale: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="Standard deviation of the initial values; 1 as in an embedding of the authors' code.",
    )
    reparametrised: bool = Field(
        default=False, description="Whether an MLP gives keys and values while they are trained."
    )
    width: int | None = Field(
        default=None, gt=0, description="Units between the two layers of the MLP; 512 if not given."
    )

    @override
    def at(self, site: Site) -> Self:
        return self.model_copy(update={"width": self._width}) if self.reparametrised else self

    @override
    def problems(self, site: Site) -> Iterator[str]:
        yield from super().problems(site)
        if self.width is not None and not self.reparametrised:
            yield f"width={self.width} is that of an MLP, which there is with reparametrised=true only"
        if self.scale != 1 and self.reparametrised:
            yield f"scale={self.scale} is that of prompts which no MLP gives; leave it out"
        yield from longer_than_any_input(self.length, site)

    @override
    def parameter_count(self, site: Site) -> int:
        if self.reparametrised:
            return mlp_counts(site, self.length, self._width)[0]
        return self.length * width_of(site)  # 2 · d for each position of a layer

    @override
    def shared_counts(self, site: Site) -> Mapping[Hashable, int]:
        if not self.reparametrised:
            return {}
        return {Trunk.alike_at(site): mlp_counts(site, self.length, self._width)[1]}

    @override
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> Prompts | Reparametrised:
        if not self.reparametrised:
            return Prompts.drawn(site, self.length, self.scale, generator)
        trunk = Trunk(site, self.length, self._width, generator)
        return Reparametrised(site, trunk, self._width, generator)

    @override
    def settled(self) -> Self:
        return self.model_copy(update={"reparametrised": False, "width": None})

    @override
    def settle(self, module: nn.Module) -> nn.Module:
        return module.settled() if isinstance(module, Reparametrised) else module

    @property
    def _width(self) -> int:
        return self.width if self.width is not None else MLP_WIDTH
