"""Deep prompts: trainable keys and values in front of those that every attention computes.

Liu et al. 2021, "P-Tuning v2", https://arxiv.org/abs/2110.07602, section 3.2; the same as
Li and Liang 2021, "Prefix-Tuning", https://arxiv.org/abs/2101.00190, section 4.2, once its
reparametrisation is dropped.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from peft_compiler.methods._method import MergeRule, Method, NoMerge, Wiring
from peft_compiler.site import Core, Role, Site


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

    @override
    def parameter_count(self, site: Site) -> int:
        core = _core(site)
        return self.length * core.key_heads * (core.key_width + core.value_width)

    @override
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> "Prompts":
        core = _core(site)
        keys = torch.empty(core.key_heads, self.length, core.key_width)
        values = torch.empty(core.key_heads, self.length, core.value_width)
        keys.normal_(std=self.scale, generator=generator)
        values.normal_(std=self.scale, generator=generator)
        return Prompts(keys, values)


def _core(site: Site) -> Core:
    assert isinstance(site.place, Core)
    return site.place


class Prompts(nn.Module):
    """Keys (key heads, length, key width) and values (key heads, length, value width) of the prompts.

    Not the identity at initialisation: queries attend to the prompts from the start.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys = nn.Parameter(keys)
        self.values = nn.Parameter(values)

    @override
    def forward(
        self,
    ) -> tuple[Float[Tensor, "key_heads length key_width"], Float[Tensor, "key_heads length value_width"]]:
        return self.keys, self.values

    @override
    def extra_repr(self) -> str:
        return f"keys={tuple(self.keys.shape)}, values={tuple(self.values.shape)}"
