"""Prefix-tuning: trained keys and values in front of every attention's own, given by an MLP.

Li and Liang 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation",
https://arxiv.org/abs/2101.00190. Section 4.2: keys and values P[i, :] stand in front of those of
the input in every attention, of an encoder-decoder in all three kinds:
(key heads, length, head width) each. Section 4.3: P[i, :] = MLP(P'[i, :]) while it is trained; then
P alone is kept. Section 7.4: for few examples, P starts as the keys and values that the base
computes for real words.
"""

from collections.abc import Hashable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import ConfigDict, Field, model_validator
from torch import nn
from typing_extensions import override

from peft_compiler.methods._method import MergeRule, Method, NoMerge, Wiring
from peft_compiler.methods._prompts import (
    MLP_WIDTH,
    Prompts,
    Reparametrised,
    build_prompts,
    idle_width,
    longer_than_any_input,
    prompts_count,
    trunk_counts,
    with_words,
    words_in_schema,
)
from peft_compiler.site import Role, Site

DEFAULT_LENGTH = 10
"""As for table-to-text in section 5.3."""


class Prefix(Method, frozen=True):
    """Spec of the prefix of one attention.

    >>> Prefix(length=200).reparametrised
    True
    """

    paper: ClassVar[str] = "arXiv:2101.00190"
    attaches: ClassVar[Mapping[Role, Wiring]] = {Role.ATTENTION_CORE: Wiring.EXTEND_KV}
    spoken: ClassVar[tuple[str, ...]] = ("prefix", "prefix tuning", "prefix-tuning")
    default_roles: ClassVar[tuple[Role, ...]] = (Role.ATTENTION_CORE,)
    identity: ClassVar[bool] = False
    merge: ClassVar[MergeRule | NoMerge] = NoMerge(
        "no weight of the base adds keys and values to an attention"
    )

    model_config = ConfigDict(json_schema_extra=words_in_schema("text"))

    kind: Literal["prefix"] = "prefix"
    length: int | None = Field(
        default=None, gt=0, description="Number of positions; 10, or as many as the text has tokens."
    )
    reparametrised: bool = Field(
        default=True, description="Whether an MLP gives the prefix while it is trained."
    )
    width: int | None = Field(
        default=None,
        gt=0,
        description="Units between the two layers of the MLP; 512 if not given, 800 for summarisation.",
    )
    text: str | None = Field(
        default=None,
        min_length=1,
        description="Words whose keys and values in the base the prefix starts as.",
    )
    tokens: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None, description="Token ids of the text, as the tokenizer given gave them."
    )

    @model_validator(mode="before")
    @classmethod
    def _starts_at_words(cls, settings: Any) -> Any:
        return with_words(settings, "text")

    @override
    def tokenized(self, tokenizer: Any) -> Self:
        if self.text is None or self.tokens is not None:
            return self
        ids = tuple(tokenizer.encode(self.text, add_special_tokens=False))
        return self.model_copy(update={"tokens": ids})

    @override
    def at(self, site: Site) -> Self:
        width = {"width": self._mlp} if self.reparametrised else {}
        return self.model_copy(update={"length": self._length, **width})

    @override
    def problems(self, site: Site) -> Iterator[str]:
        yield from super().problems(site)
        if self.text is not None and self.tokens is None:
            yield "its text cannot be read without a tokenizer; pass one: compile(..., tokenizer=...)"
        if self.tokens == ():
            yield f"the tokenizer splits the text '{self.text}' into nothing; choose other words"
        elif self.tokens is not None and len(self.tokens) != self._length:
            found = len(self.tokens)
            yield f"length={self._length} is not that of the text, which has {found} tokens; leave it out"
        yield from idle_width(self.width, self.reparametrised)
        if self.tokens is not None and self._mlp is not None and self._mlp < self._length:
            yield f"width={self._mlp} is too narrow for the MLP to give {self._length} positions; take more"
        yield from longer_than_any_input(self._length, site)

    @override
    def parameter_count(self, site: Site) -> int:
        return prompts_count(site, self._length, self._mlp)

    @override
    def shared_counts(self, site: Site) -> Mapping[Hashable, int]:
        return trunk_counts(site, self._length, self._mlp)

    @override
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> Prompts | Reparametrised:
        return build_prompts(site, self._length, self._mlp, generator)

    @property
    @override
    def words(self) -> tuple[int, ...] | None:
        return self.tokens

    @override
    def settled(self) -> Self:
        length = self.length if self.tokens is None else self._length
        return type(self)(length=length, reparametrised=False)

    @override
    def settle(self, module: nn.Module) -> nn.Module:
        return module.settled() if isinstance(module, Reparametrised) else module

    @property
    def _length(self) -> int:
        return self.length if self.length is not None else len(self.tokens or ()) or DEFAULT_LENGTH

    @property
    def _mlp(self) -> int | None:
        """Width of the MLP, or None where there is none."""
        return (self.width or MLP_WIDTH) if self.reparametrised else None
