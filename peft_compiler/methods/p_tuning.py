"""P-tuning: trained pseudo tokens anywhere in the input, given by a small prompt encoder.

Liu et al. 2021, "GPT Understands, Too", https://arxiv.org/abs/2103.10385, sections 3.1 and 3.2 of
its first version. A template such as `[P][P] {premise} [P] ? [MASK]` puts pseudo tokens between the
text and anchor words. Their embeddings h = MLP(LSTM(embeddings)), of shape (m, d), are those of a
bidirectional LSTM over trained embeddings and a two-layer MLP with ReLU, or of an MLP alone. Once
training is over the encoder is dropped and h is kept.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import override

from peft_compiler.methods._method import MergeRule, Method, NoMerge, Wiring
from peft_compiler.methods._prompts import linear
from peft_compiler.methods.prompt import PromptEmbeddings
from peft_compiler.site import Role, Site

PSEUDO = "[P]"
"""What stands for one pseudo token in a template."""
TEXT = re.compile(r"\{(\w+)\}")
"""What stands for a text in a template."""
DEFAULT_LENGTH = 6
DEFAULT_LAYERS = 2
LSTM_WEIGHTS = 4
"""Gates of an LSTM: input, forget, cell, output."""


class PTuning(Method, frozen=True):
    """Spec of the pseudo tokens of one input.

    >>> PTuning(template="[P][P] {text} [P]").pseudo_tokens
    3
    """

    paper: ClassVar[str] = "arXiv:2103.10385"
    attaches: ClassVar[Mapping[Role, Wiring]] = {Role.INPUT: Wiring.EXTEND_INPUT}
    spoken: ClassVar[tuple[str, ...]] = ("p-tuning", "pseudo token")
    default_roles: ClassVar[tuple[Role, ...]] = (Role.INPUT,)
    default_decoder: ClassVar[bool | None] = False
    identity: ClassVar[bool] = False
    merge: ClassVar[MergeRule | NoMerge] = NoMerge("no weight of the base adds tokens to the input")

    kind: Literal["p_tuning"] = "p_tuning"
    length: int | None = Field(
        default=None, gt=0, description="Number of pseudo tokens; 6, or as many as the template has."
    )
    template: str | None = Field(
        default=None,
        description="Where they stand: `[P]` for each, `{name}` for each text, anchor words as they are; "
        "in front of the input if not given.",
    )
    encoder: Literal["lstm", "mlp", "none"] = Field(
        default="lstm", description="What gives their embeddings while they are trained."
    )
    width: int | None = Field(
        default=None,
        gt=0,
        description="Units of the LSTM in each direction, or of the MLP; half of the embeddings' width "
        "if not given.",
    )
    layers: int | None = Field(default=None, gt=0, description="Layers of the LSTM; 2 if not given.")

    @model_validator(mode="after")
    def _has_pseudo_tokens(self) -> Self:
        if self.template is not None and PSEUDO not in self.template:
            raise ValueError(f"found no {PSEUDO} in the template; expected one for each pseudo token")
        if any(brace in TEXT.sub("", self.template or "") for brace in "{}"):
            raise ValueError("found a brace in the template that is not of a text; write its name as {name}")
        return self

    @model_validator(mode="after")
    def _has_what_its_settings_are_of(self) -> Self:
        if self.width is not None and self.encoder == "none":
            raise ValueError(f"found width={self.width}, which is that of an encoder; leave it out")
        if self.layers is not None and self.encoder != "lstm":
            raise ValueError(f"found layers={self.layers}, which are those of an LSTM; leave them out")
        return self

    @property
    def pseudo_tokens(self) -> int:
        """How many there are."""
        if self.length is not None:
            return self.length
        return DEFAULT_LENGTH if self.template is None else self.template.count(PSEUDO)

    @property
    def names(self) -> tuple[str, ...]:
        """What the texts in the template are called."""
        return tuple(TEXT.findall(self.template or ""))

    @override
    def at(self, site: Site) -> Self:
        width = None if self.encoder == "none" else self._units(site)
        layers = self._layers if self.encoder == "lstm" else None
        return self.model_copy(update={"length": self.pseudo_tokens, "width": width, "layers": layers})

    @override
    def learns_from_any_input(self) -> bool:
        return self.template is None  # else only from one that holds the pseudo tokens

    @override
    def wiring(self, site: Site) -> Wiring:
        return super().wiring(site) if self.template is None else Wiring.EXCHANGE_INPUT

    @override
    def problems(self, site: Site) -> Iterator[str]:
        yield from super().problems(site)
        length = self.pseudo_tokens
        if self.template is not None and length != self.template.count(PSEUDO):
            found = self.template.count(PSEUDO)
            yield f"length={length} is not that of the template, which has {found} {PSEUDO}; leave it out"
        if site.positions is not None and length >= site.positions:
            yield f"length={length} leaves no room for tokens: the model has {site.positions} positions"

    @override
    def positions_taken(self) -> int:
        return self.pseudo_tokens if self.template is None else 0  # else they are in the input

    @override
    def parameter_count(self, site: Site) -> int:
        n, d, w = self.pseudo_tokens, site.width_out, self._units(site)
        match self.encoder:
            case "none":
                return n * d
            case "mlp":
                return n * d + (d + 1) * w + (w + 1) * w + (w + 1) * d
            case "lstm":
                # Each direction: weights for input and state and two biases, for four gates.
                first = 2 * LSTM_WEIGHTS * w * (d + w + 2)
                others = (self._layers - 1) * 2 * LSTM_WEIGHTS * w * (2 * w + w + 2)
                return n * d + first + others + (2 * w + 1) * 2 * w + (2 * w + 1) * d

    @override
    def build(
        self, site: Site, host: nn.Module, generator: torch.Generator
    ) -> "PromptEmbeddings | PromptEncoder":
        d, w = site.width_out, self._units(site)
        embeddings = torch.empty(self.pseudo_tokens, d).normal_(generator=generator)
        match self.encoder:
            case "none":
                return PromptEmbeddings(embeddings)
            case "mlp":
                return PromptEncoder(embeddings, None, _mlp((d, w, w, d), generator))
            case "lstm":
                lstm = _lstm(d, w, self._layers, generator)
                return PromptEncoder(embeddings, lstm, _mlp((2 * w, 2 * w, d), generator))

    @override
    def settled(self) -> Self:
        return self.model_copy(update={"encoder": "none", "width": None, "layers": None})

    @override
    def settle(self, module: nn.Module) -> nn.Module:
        return module.settled() if isinstance(module, PromptEncoder) else module

    def encode(self, tokenizer: Any, entries: int, texts: Mapping[str, str]) -> list[int]:
        """Returns the token ids of the template filled with `texts`.

        The k-th pseudo token has the id `entries` + k, beyond the vocabulary.

        >>> from types import SimpleNamespace
        >>> letters = SimpleNamespace(encode=lambda text, add_special_tokens: [ord(c) for c in text])
        >>> PTuning(template="[P]{x}?[P]").encode(letters, 1000, {"x": "a"})
        [1000, 97, 63, 1001]
        """
        ids: list[int] = []
        for index, piece in enumerate((self.template or "").split(PSEUDO)):
            if index:
                ids.append(entries + index - 1)
            # Filled piece by piece: a text that holds the sign itself means no pseudo token.
            filled = TEXT.sub(lambda name: texts[name[1]], piece).rstrip()
            ids += tokenizer.encode(filled, add_special_tokens=False) if filled else []
        return ids

    @property
    def _layers(self) -> int:
        return self.layers if self.layers is not None else DEFAULT_LAYERS

    def _units(self, site: Site) -> int:
        return self.width if self.width is not None else max(1, site.width_out // 2)


class PromptEncoder(nn.Module):
    """mlp(lstm(embeddings)), of shape (m, d); without an LSTM, mlp(embeddings).

    `embeddings` are (m, d), the `lstm` gives (m, 2 · width) of them, and the `mlp` (m, d) of that.

    Not the identity at initialisation: every token attends to the pseudo tokens from the start.
    """

    def __init__(self, embeddings: Tensor, lstm: nn.LSTM | None, mlp: nn.Module) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(embeddings)
        self.lstm = lstm
        self.mlp = mlp

    @override
    def forward(self) -> Float[Tensor, "m d"]:
        hidden = self.embeddings if self.lstm is None else self.lstm(self.embeddings)[0]
        return self.mlp(hidden)

    def settled(self) -> PromptEmbeddings:
        """Returns the embeddings that it gives, by themselves."""
        with torch.no_grad():
            return PromptEmbeddings(self())


def _lstm(d_in: int, width: int, layers: int, generator: torch.Generator) -> nn.LSTM:
    """Returns a bidirectional LSTM that starts as torch's own does, with draws from `generator` alone."""
    lstm = nn.LSTM(d_in, width, layers, bidirectional=True, device="meta").to_empty(device="cpu")
    for parameter in lstm.parameters():
        nn.init.uniform_(parameter, -(width**-0.5), width**-0.5, generator=generator)
    return lstm


def _mlp(widths: tuple[int, ...], generator: torch.Generator) -> nn.Sequential:
    """Returns linears from width to width with ReLU between them."""
    first, *others = (linear(*pair, generator) for pair in pairwise(widths))
    return nn.Sequential(first, *(layer for each in others for layer in (nn.ReLU(), each)))
