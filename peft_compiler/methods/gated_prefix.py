"""Gated prefixes: each sequence says how much of its prefix an attention shall see.

Mao et al. 2021, "UniPELT: A Unified Framework for Parameter-Efficient Language Model Tuning",
https://arxiv.org/abs/2110.07577, section 3.2. The keys and values of a prefix, as in prefix-tuning
(arXiv:2101.00190) and with its MLP while it is trained, are multiplied by the gate
G_P = sigmoid(w x + b) of what the attention is applied to, averaged over the positions of the
sequence as in the authors' code: one number for each example and attention, w of shape (1, d). The
gate is kept when the MLP is dropped.
"""

from collections.abc import Hashable, Iterator, Mapping
from typing import ClassVar, Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from peft_compiler.methods._gates import Gate, averaging_problems, gate_count
from peft_compiler.methods._method import MergeRule, Method, NoMerge, Wiring
from peft_compiler.methods._prompts import (
    MLP_WIDTH,
    KeysAndValues,
    Prompts,
    Reparametrised,
    build_prompts,
    core_of,
    idle_width,
    longer_than_any_input,
    prompts_count,
    trunk_counts,
)
from peft_compiler.site import Role, Site


class GatedPrefix(Method, frozen=True):
    """Spec of the gated prefix of one attention.

    >>> GatedPrefix().length
    10
    """

    paper: ClassVar[str] = "arXiv:2110.07577"
    attaches: ClassVar[Mapping[Role, Wiring]] = {Role.ATTENTION_CORE: Wiring.EXTEND_KV_BY_INPUT}
    spoken: ClassVar[tuple[str, ...]] = ("gated prefix",)
    default_roles: ClassVar[tuple[Role, ...]] = (Role.ATTENTION_CORE,)
    identity: ClassVar[bool] = False
    merge: ClassVar[MergeRule | NoMerge] = NoMerge(
        "no weight of the base adds keys and values to an attention"
    )

    kind: Literal["gated_prefix"] = "gated_prefix"
    length: int = Field(default=10, gt=0, description="Number of positions.")
    reparametrised: bool = Field(
        default=True, description="Whether an MLP gives the prefix while it is trained."
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
        yield from longer_than_any_input(self.length, site)
        if core_of(site).source is None:
            yield "what its attention is applied to cannot be had where keys are added: take prefix instead"
        else:
            yield from averaging_problems(site, "prefix")

    @override
    def decodes_in_steps(self) -> bool:
        # The mean is over the positions that are given at once.
        return False

    @override
    def parameter_count(self, site: Site) -> int:
        return gate_count(core_of(site).source_width) + prompts_count(site, self.length, self._mlp)

    @override
    def shared_counts(self, site: Site) -> Mapping[Hashable, int]:
        return trunk_counts(site, self.length, self._mlp)

    @override
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> "GatedKeysAndValues":
        prefix = build_prompts(site, self.length, self._mlp, generator)
        return GatedKeysAndValues(prefix, Gate(core_of(site).source_width, site.batch_axis, generator))

    @override
    def settled(self) -> Self:
        return type(self)(length=self.length, reparametrised=False)

    @override
    def settle(self, module: nn.Module) -> nn.Module:
        assert isinstance(module, GatedKeysAndValues)
        if not isinstance(module.prefix, Reparametrised):
            return module
        return GatedKeysAndValues(module.prefix.settled(), module.gate)

    @property
    def _mlp(self) -> int | None:
        """Width of the MLP, or None where there is none."""
        return (self.width or MLP_WIDTH) if self.reparametrised else None


class GatedKeysAndValues(nn.Module):
    """gate(x) · keys and gate(x) · values, with an axis for the examples of x in front.

    Not the identity at initialisation: queries attend to the prefix from the start.
    """

    def __init__(self, prefix: Prompts | Reparametrised, gate: Gate) -> None:
        super().__init__()
        self.prefix = prefix
        self.gate = gate

    @override
    def forward(self, x: Float[Tensor, "*axes d"]) -> KeysAndValues:
        keys, values = self.prefix()
        gates = self.gate(x).flatten()[:, None, None, None]
        return gates * keys, gates * values
