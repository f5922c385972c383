"""Prompt tuning: trainable embeddings in front of those of the tokens.

Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning",
https://arxiv.org/abs/2104.08691, sections 2 and 2.1: the model sees the input = [P; X], with the
prompt P of shape (length, d) in front of the embeddings X of the input, (T, d).
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field, model_validator
from torch import Tensor, nn
from typing_extensions import override

from peft_compiler.methods._method import MergeRule, Method, NoMerge, Wiring
from peft_compiler.methods._prompts import with_words, words_in_schema
from peft_compiler.site import Input, Role, Site

DEFAULT_LENGTH = 20
COMMON = 5000
"""Entries of the vocabulary that count as common: the first ones, where it is sorted by frequency."""
UNIFORM = 0.5
"""Random values are drawn uniformly from -0.5 to 0.5."""


class Prompt(Method, frozen=True):
    """Spec of one soft prompt.

    >>> Prompt(length=100).init
    'vocabulary'
    """

    paper: ClassVar[str] = "arXiv:2104.08691"
    attaches: ClassVar[Mapping[Role, Wiring]] = {Role.INPUT: Wiring.EXTEND_INPUT}
    spoken: ClassVar[tuple[str, ...]] = ("prompt", "soft prompt", "prompt tuning")
    default_roles: ClassVar[tuple[Role, ...]] = (Role.INPUT,)
    default_decoder: ClassVar[bool | None] = False
    identity: ClassVar[bool] = False
    merge: ClassVar[MergeRule | NoMerge] = NoMerge("no weight of the base adds positions to the input")

    model_config = ConfigDict(json_schema_extra=words_in_schema("text", "labels"))

    kind: Literal["prompt"] = "prompt"
    length: int | None = Field(
        default=None, gt=0, description="Number of prompt positions; 20, or as many as the words below need."
    )
    init: Literal["vocabulary", "random"] = Field(
        default="vocabulary",
        description="How positions without words of their own start: as embeddings of common tokens, "
        "drawn at random, or uniformly between -0.5 and 0.5.",
    )
    text: str | None = Field(
        default=None,
        min_length=1,
        description="Words whose embeddings the prompt starts with, token by token.",
    )
    labels: tuple[Annotated[str, Field(min_length=1)], ...] | None = Field(
        default=None,
        min_length=1,
        description="Names of the classes: each starts one position, as the mean of its tokens' embeddings.",
    )
    tokens: tuple[tuple[Annotated[int, Field(ge=0)], ...], ...] | None = Field(
        default=None, description="Token ids of the text or the labels, as the tokenizer given gave them."
    )

    ensemble: int = Field(
        default=1,
        gt=0,
        description="Number of prompts for one task, trained and run in one batch (section 6).",
    )
    answer: Literal["mean", "majority"] | None = Field(
        default=None,
        description="How the answers of an ensemble are made one: the mean of the logits, if not given, "
        "or a majority vote.",
    )

    @model_validator(mode="before")
    @classmethod
    def _starts_at_words(cls, settings: Any) -> Any:
        return with_words(settings, "text", "labels")

    @model_validator(mode="after")
    def _has_one_beginning(self) -> Self:
        if self.text is not None and self.labels is not None:
            raise ValueError("found both text and labels; expected one beginning of the prompt")
        if self.labels is not None and self.tokens is not None and len(self.labels) != len(self.tokens):
            raise ValueError(f"found token ids of {len(self.tokens)} labels, expected {len(self.labels)}")
        return self

    @override
    def tokenized(self, tokenizer: Any) -> Self:
        if self.tokens is not None or (self.text is None and self.labels is None):
            return self
        words = self.labels or (self.text,)
        ids = [tuple(tokenizer.encode(word, add_special_tokens=False)) for word in words]
        tokens = tuple(ids) if self.labels else tuple((token,) for token in ids[0])
        return self.model_copy(update={"tokens": tokens})

    @override
    def at(self, site: Site) -> Self:
        if self.length is not None:
            return self
        return self.model_copy(update={"length": self._length})

    @override
    def problems(self, site: Site) -> Iterator[str]:
        yield from super().problems(site)
        words = "text" if self.labels is None else "labels"
        if self.tokens is None and (self.text is not None or self.labels is not None):
            yield f"its {words} cannot be read without a tokenizer; pass one: compile(..., tokenizer=...)"
        for word, tokens in zip(self.labels or (self.text,), self.tokens or (), strict=False):
            if not tokens:
                yield f"the tokenizer splits the label '{word}' into nothing; choose another word"
        if self.tokens == ():
            yield f"the tokenizer splits the text '{self.text}' into nothing; choose other words"
        strange = [token for tokens in self.tokens or () for token in tokens if token >= site.width_in]
        if strange:
            yield (
                f"token {strange[0]} is beyond the {site.width_in} entries of the embedding; "
                "expected the tokenizer of this model"
            )
        if self.answer is not None and self.ensemble == 1:
            yield f"answer={self.answer} is that of an ensemble: write how many prompts it has, ensemble=5"
        if self.tokens is not None and len(self.tokens) > self._length:
            yield f"length={self._length} is too short for {len(self.tokens)} {words}; take more"
        if site.positions is not None and self._length >= site.positions:
            yield f"length={self._length} leaves no room for tokens: the model has {site.positions} positions"

    @override
    def positions_taken(self) -> int:
        return self._length

    @override
    def parameter_count(self, site: Site) -> int:
        return self.ensemble * self._length * site.width_out  # section 2.1: E · P

    @override
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> "PromptEmbeddings":
        assert isinstance(site.place, Input)
        members = [self._start(site, site.place, host, generator) for _ in range(self.ensemble)]
        return PromptEmbeddings(members[0] if self.ensemble == 1 else torch.stack(members))

    @property
    @override
    def ensemble_answer(self) -> str | None:
        return None if self.ensemble == 1 else self.answer or "mean"

    def _start(self, site: Site, place: Input, host: nn.Module, generator: torch.Generator) -> Tensor:
        prompt = torch.empty(self._length, site.width_out).uniform_(-UNIFORM, UNIFORM, generator=generator)
        if self.init == "vocabulary" or self.tokens:
            rows = torch.randint(min(COMMON, site.width_in), (self._length,), generator=generator)
            starts = [row.unsqueeze(0) for row in rows] if self.init == "vocabulary" else []
            words = [torch.tensor(tokens) for tokens in self.tokens or ()]
            for position, tokens in enumerate([*words, *starts[len(words) :]]):
                prompt[position] = embedded(host, place, tokens).mean(0)
        return prompt

    @property
    def _length(self) -> int:
        return self.length if self.length is not None else len(self.tokens or ()) or DEFAULT_LENGTH


def embedded(host: nn.Module, place: Input, tokens: Tensor) -> Tensor:
    """Returns the embeddings (n, d) of `tokens` (n) in the base, as they enter it; zeros without weights."""
    path, _, name = place.table.rpartition(".")
    table = host.get_submodule(path)
    weight = table.get_parameter(name)
    if weight.is_meta:
        return torch.zeros(len(tokens), weight.shape[1])
    with torch.no_grad():
        # By the module itself, where it is one: some scale what they look up.
        found = weight[tokens.to(weight.device)] if place.anchor else table(tokens.to(weight.device))
    return found.float().cpu()


class PromptEmbeddings(nn.Module):
    """The prompt P as `embeddings`, of shape (length, d), or those of an ensemble, (members, length, d).

    Not the identity at initialisation: every token attends to the prompt from the start.
    """

    def __init__(self, embeddings: Tensor) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(embeddings)

    @override
    def forward(self) -> Float[Tensor, "*members length d"]:
        return self.embeddings.clone()

    @override
    def extra_repr(self) -> str:
        return f"embeddings={tuple(self.embeddings.shape)}"
