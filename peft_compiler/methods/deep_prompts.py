"""Deep prompts: trainable keys and values in front of those that every attention computes.

Liu et al. 2021, "P-Tuning v2: Prompt Tuning Can Be Comparable to Fine-tuning Universally Across
Scales and Tasks", https://arxiv.org/abs/2110.07602, section 3.2:
softmax(Q [P_k; K]ᵀ / √c) · [P_v; V], with P_k and P_v, the prompts of each attention's own, of shape
(key heads, length, head width). The reparametrisation, which section 3.3 finds to help some tasks
and to hurt others, is that of prefix-tuning.
"""

from collections.abc import Hashable, Iterator, Mapping
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import nn
from typing_extensions import override

from peft_compiler.methods._method import Factor, MergeRule, Method, NoMerge, Wiring
from peft_compiler.methods._prompts import (
    MLP_WIDTH,
    Prompts,
    Reparametrised,
    build_prompts,
    idle_width,
    longer_than_any_input,
    prompts_count,
    trunk_counts,
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
    scale: Factor = Field(
        default=1.0,
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
        return self.model_copy(update={"width": self._mlp}) if self.reparametrised else self

    @override
    def problems(self, site: Site) -> Iterator[str]:
        yield from super().problems(site)
        yield from idle_width(self.width, self.reparametrised)
        if self.scale != 1 and self.reparametrised:
            yield f"scale={self.scale} is that of prompts which no MLP gives; leave it out"
        yield from longer_than_any_input(self.length, site)

    @override
    def parameter_count(self, site: Site) -> int:
        return prompts_count(site, self.length, self._mlp)  # without an MLP, 2 · d for each position

    @override
    def shared_counts(self, site: Site) -> Mapping[Hashable, int]:
        return trunk_counts(site, self.length, self._mlp)

    @override
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> Prompts | Reparametrised:
        return build_prompts(site, self.length, self._mlp, generator, self.scale)

    @override
    def settled(self) -> Self:
        return self.model_copy(update={"reparametrised": False, "width": None})

    @override
    def settle(self, module: nn.Module) -> nn.Module:
        return module.settled() if isinstance(module, Reparametrised) else module

    @property
    def _mlp(self) -> int | None:
        """Width of the MLP, or None where there is none."""
        return (self.width or MLP_WIDTH) if self.reparametrised else None
