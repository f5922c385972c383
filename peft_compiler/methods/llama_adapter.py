"""LLaMA-Adapter: prompts that an attention sees apart from its keys, through gates that start shut.

Zhang et al. 2023, "LLaMA-Adapter: Efficient Fine-tuning of Language Models with Zero-init
Attention", https://arxiv.org/abs/2303.16199, sections 3.1 and 3.2. Prompts P of shape (K, C) in
each of the upper layers become keys and values by the frozen projections of their attention:
softmax(Q Kᵀ / √c) V + tanh(g) · softmax(Q K_Pᵀ / √c) V_P, with one g, starting at zero, for each
head.
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from peft_compiler.methods._method import MergeRule, Method, NoMerge, Wiring
from peft_compiler.methods._prompts import core_of, longer_than_any_input
from peft_compiler.site import Role, Site


class LLaMAAdapter(Method, frozen=True):
    """Spec of the gated prompts of one attention.

    >>> LLaMAAdapter().length
    10
    """

    paper: ClassVar[str] = "arXiv:2303.16199"
    attaches: ClassVar[Mapping[Role, Wiring]] = {Role.ATTENTION_CORE: Wiring.GATED_KV}
    spoken: ClassVar[tuple[str, ...]] = ("llama-adapter", "gated prompt")
    default_roles: ClassVar[tuple[Role, ...]] = (Role.ATTENTION_CORE,)
    default_cross: ClassVar[bool | None] = False
    identity: ClassVar[bool] = True
    merge: ClassVar[MergeRule | NoMerge] = NoMerge(
        "no weight of the base adds keys and values to an attention"
    )

    kind: Literal["llama_adapter"] = "llama_adapter"
    length: int = Field(default=10, gt=0, description="Number of prompts (K in the paper).")

    @override
    def problems(self, site: Site) -> Iterator[str]:
        yield from super().problems(site)
        core = core_of(site)
        if core.keys is None or core.values is None:
            yield "its keys and values are not each given by one projection: take deep prompts instead"
        yield from longer_than_any_input(self.length, site)

    @override
    def parameter_count(self, site: Site) -> int:
        return self.length * site.width_in + core_of(site).heads  # sections 3.1, 3.2: K · C, a gate a head

    @override
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> "GatedPrompts":
        prompts = torch.empty(self.length, site.width_in).normal_(generator=generator)
        return GatedPrompts(prompts, core_of(site).heads)


class GatedPrompts(nn.Module):
    """`prompts` P of shape (K, C), and tanh(g) with `gates` g of shape (heads).

    Identity at initialisation because every g is zero; the prompts are normal, so that the
    gates have a gradient from the first step on.
    """

    def __init__(self, prompts: Tensor, heads: int) -> None:
        super().__init__()
        self.prompts = nn.Parameter(prompts)
        self.gates = nn.Parameter(torch.zeros(heads))

    @override
    def forward(self) -> tuple[Float[Tensor, "length d"], Float[Tensor, " heads"]]:
        return self.prompts.clone(), self.gates.tanh()

    @override
    def extra_repr(self) -> str:
        return f"prompts={tuple(self.prompts.shape)}, gates={tuple(self.gates.shape)}"
