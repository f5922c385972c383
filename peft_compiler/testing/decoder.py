"""A small language model, in plain torch, in which a method is tried as a whole."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

ENTRIES, WIDTH, INNER, HEADS, LAYERS = 31, 32, 64, 4, 2


class Attention(nn.Module):
    """Causal self-attention with as many heads as `HEADS`."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.output = nn.Linear(WIDTH, WIDTH)

    @override
    def forward(self, x: Float[Tensor, "batch length d"]) -> Float[Tensor, "batch length d"]:
        batch, length, _ = x.shape
        q, k, v = (
            projection(x).view(batch, length, HEADS, -1).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.output(mixed.transpose(1, 2).reshape(batch, length, WIDTH))


class FeedForward(nn.Module):
    """down(silu(gate(x)) · up(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, INNER)
        self.up = nn.Linear(WIDTH, INNER)
        self.down = nn.Linear(INNER, WIDTH)

    @override
    def forward(self, x: Float[Tensor, "batch length d"]) -> Float[Tensor, "batch length d"]:
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Attention and a gated feed-forward layer, each after a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.before_feed_forward = nn.LayerNorm(WIDTH)
        self.feed_forward = FeedForward()

    @override
    def forward(self, x: Float[Tensor, "batch length d"]) -> Float[Tensor, "batch length d"]:
        x = x + self.attention(self.before_attention(x))
        return x + self.feed_forward(self.before_feed_forward(x))


class Decoder(nn.Module):
    """Token ids, or what they are embedded to, to scores of the next ones."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(ENTRIES, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, ENTRIES)

    @override
    def forward(
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        inputs_embeds: Float[Tensor, "batch length d"] | None = None,
    ) -> Float[Tensor, "batch length entries"]:
        x = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def small_decoder() -> tuple[Decoder, dict[str, Tensor]]:
    """Returns the model, the same each time, and what its forward takes."""
    with torch.random.fork_rng([]):  # pyright: ignore[reportUnknownMemberType]
        torch.manual_seed(0)
        return Decoder().eval(), {"input_ids": torch.randint(0, ENTRIES, (2, 7))}
