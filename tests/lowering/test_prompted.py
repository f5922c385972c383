"""Attention over prompts and keys is attention over their concatenation."""

import math

import pytest
import torch
from torch import Tensor

from peft_compiler.lowering.prompted import prompt_bias, prompted_attention

BATCH, HEADS, KEY_HEADS, QUERIES, KEYS, WIDTH, PROMPTS = 2, 4, 2, 5, 7, 8, 3


@pytest.fixture
def parts() -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    prompts = (draw(KEY_HEADS, PROMPTS, WIDTH), draw(KEY_HEADS, PROMPTS, WIDTH))
    return (
        draw(BATCH, HEADS, QUERIES, WIDTH),
        draw(BATCH, HEADS, KEYS, WIDTH),
        draw(BATCH, HEADS, KEYS, WIDTH),
        prompts,
    )


def by_hand(
    query: Tensor, key: Tensor, value: Tensor, prompts: tuple[Tensor, Tensor], bias: Tensor
) -> Tensor:
    keys, values = (p.repeat_interleave(HEADS // KEY_HEADS, 0).expand(BATCH, -1, -1, -1) for p in prompts)
    scores = query @ torch.cat([keys, key], 2).transpose(-1, -2) / math.sqrt(WIDTH) + bias
    return scores.softmax(-1) @ torch.cat([values, value], 2)


def test_without_a_mask(parts: tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]) -> None:
    query, key, value, prompts = parts
    found = prompted_attention((prompts,), False, query, key, value)
    torch.testing.assert_close(found, by_hand(query, key, value, prompts, torch.zeros(PROMPTS + KEYS)))


@pytest.mark.parametrize("kind", ["bool", "additive", "causal flag"])
def test_every_query_sees_every_prompt(
    kind: str, parts: tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]
) -> None:
    query, key, value, prompts = parts
    seen = torch.ones(QUERIES, KEYS, dtype=torch.bool).tril()
    bias = torch.zeros(QUERIES, PROMPTS + KEYS)
    bias[:, PROMPTS:].masked_fill_(~seen, float("-inf"))
    mask = {"bool": seen, "additive": bias[:, PROMPTS:], "causal flag": None}[kind]
    found = prompted_attention((prompts,), False, query, key, value, attn_mask=mask, is_causal=mask is None)
    torch.testing.assert_close(found, by_hand(query, key, value, prompts, bias))


def test_heads_of_grouped_queries_share_a_prompt(
    parts: tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]],
) -> None:
    query, key, value, prompts = parts
    grouped = prompted_attention((prompts,), False, query, key[:, ::2], value[:, ::2], enable_gqa=True)
    repeated = prompted_attention(
        (prompts,), False, query, key[:, ::2].repeat_interleave(2, 1), value[:, ::2].repeat_interleave(2, 1)
    )
    torch.testing.assert_close(grouped, repeated)


def test_a_fixed_bias_may_be_shifted_row_by_row() -> None:
    alibi = -torch.arange(KEYS).flip(0).float().expand(QUERIES, KEYS)
    shift = torch.randn(QUERIES, 1)
    assert torch.equal(prompt_bias(alibi, learned=False), torch.zeros(QUERIES, 1))
    torch.testing.assert_close(prompt_bias(alibi + shift, learned=False), shift)
    assert torch.equal(prompt_bias(alibi + shift, learned=True), torch.zeros(QUERIES, 1))


def test_the_last_prompts_stand_first(parts: tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]) -> None:
    query, key, value, prompts = parts
    more = (prompts[0] * 2, prompts[1] * 3)
    both = (torch.cat([more[0], prompts[0]], 1), torch.cat([more[1], prompts[1]], 1))
    found = prompted_attention((prompts, more), False, query, key, value)
    torch.testing.assert_close(found, prompted_attention((both,), False, query, key, value))
