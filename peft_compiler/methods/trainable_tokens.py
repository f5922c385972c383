"""Trainable tokens: the embeddings of a few chosen tokens, such as new ones, and of no others.

Gal et al. 2022, "An Image is Worth One Word: Personalizing Text-to-Image Generation using Textual
Inversion", https://arxiv.org/abs/2208.01618, section 3: of a frozen model the embedding of a new
word is all that is trained. Each chosen row v of the table, of shape (d), becomes v + delta.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import AfterValidator, Field
from torch import Tensor, nn
from typing_extensions import override

from peft_compiler.methods._features import precise
from peft_compiler.methods._method import MergeRule, Method, NoMerge, Wiring
from peft_compiler.site import Role, Site


def fold(inserted: nn.Module, parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Returns the table, of shape (out, entries), with the deltas added to the chosen tokens."""
    assert isinstance(inserted, TokenDeltas)
    weight = parameters["weight"]
    tokens, delta = inserted.tokens.to(weight.device), inserted.delta.to(weight.device)
    folded = precise(weight).index_add(1, tokens, precise(delta).mT)
    return {**parameters, "weight": folded.to(weight.dtype)}


def _different(tokens: tuple[int, ...]) -> tuple[int, ...]:
    twice = sorted({token for token in tokens if tokens.count(token) > 1})
    if twice:
        raise ValueError(f"found token {twice[0]} twice; name each once")
    return tokens


class TrainableTokens(Method, frozen=True):
    """Spec of the tokens of one table.

    >>> TrainableTokens(tokens=(5, 9)).kind
    'trainable_tokens'
    """

    paper: ClassVar[str] = "arXiv:2208.01618"
    attaches: ClassVar[Mapping[Role, Wiring]] = {Role.EMBEDDING: Wiring.BESIDE}
    spoken: ClassVar[tuple[str, ...]] = ("trainable token",)
    default_roles: ClassVar[tuple[Role, ...]] = (Role.EMBEDDING,)
    identity: ClassVar[bool] = True
    merge: ClassVar[MergeRule | NoMerge] = fold

    kind: Literal["trainable_tokens"] = "trainable_tokens"
    tokens: Annotated[tuple[Annotated[int, Field(ge=0)], ...], AfterValidator(_different)] = Field(
        default=(), description="Token ids, as the tokenizer gives them."
    )

    @override
    def problems(self, site: Site) -> Iterator[str]:
        yield from super().problems(site)
        if not self.tokens:
            yield "it has no tokens to train; name them, as in tokens=[5, 9]"
        elif site.role is Role.EMBEDDING and max(self.tokens) >= site.width_in:
            yield (
                f"token {max(self.tokens)} is not in the table, which has {site.width_in:,} rows: "
                "resize the embeddings first"
            )

    @override
    def learns_from_any_input(self) -> bool:
        return False  # only from one that holds the tokens

    @override
    def parameter_count(self, site: Site) -> int:
        return len(self.tokens) * site.width_out

    @override
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> "TokenDeltas":
        """Returns zeros; it draws nothing."""
        return TokenDeltas(self.tokens, site.width_out)


class TokenDeltas(nn.Module):
    """What is added to the embedding of each token id: a row of `delta`, of shape (tokens, d), or nothing.

    `tokens`, of shape (tokens), are the ids that have one.

    Identity at initialisation: it starts at zero.
    """

    tokens: Tensor

    def __init__(self, tokens: tuple[int, ...], d: int) -> None:
        super().__init__()
        self.register_buffer("tokens", torch.tensor(tokens), persistent=False)
        self.delta = nn.Parameter(torch.zeros(len(tokens), d))

    @override
    def forward(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        # A product with a narrow matrix of ones and zeros: no row is gathered that nobody chose.
        return (ids[..., None] == self.tokens).to(self.delta.dtype) @ self.delta
