"""Attention whose keys and values are preceded by trainable ones.

Prefix-tuning (arXiv:2101.00190, section 4) and P-tuning v2 (arXiv:2110.07602, section 3.2)
put trained keys and values in front of every attention's own. They are added where
attention is computed, after the cache, so a cache never holds them and keeps its length.

Prompts are pairs (keys, values) of shapes (key_heads, n, key_width) and (key_heads, n, value_width),
or have an axis for the examples in front, (batch, key_heads, n, ...), where each has its own.
"""

import torch
import torch.nn.functional as F  # noqa: N812  (the field's name for it)
from torch import Tensor

Prompts = tuple[tuple[Tensor, Tensor], ...]


def join_prompts(prompts: Prompts, heads: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Returns keys (..., heads, n, key_width) and values (..., heads, n, value_width), the last first.

    Under grouped-query attention each prompt head serves as many heads as the group has.
    """
    keys, values = prompts[-1]
    for more_keys, more_values in reversed(prompts[:-1]):
        keys, values = _joined(keys, more_keys), _joined(values, more_values)
    group = heads // keys.shape[-3]
    if group > 1:
        keys, values = keys.repeat_interleave(group, -3), values.repeat_interleave(group, -3)
    return keys.to(like.dtype), values.to(like.dtype)


def _joined(first: Tensor, then: Tensor) -> Tensor:
    """Returns positions one after another, each for every example if the examples of one have their own."""
    batch = max(first.shape[:-3], then.shape[:-3], key=len)
    return torch.cat([part.expand(*batch, *part.shape[-3:]) for part in (first, then)], -2)


def prompt_bias(bias: Tensor, learned: bool) -> Tensor:
    """Returns what is added to prompts' scores, (..., queries, 1), next to a `bias` (..., queries, keys).

    A prompt has no position. Where the bias is learned or depends on the content (T5,
    DeBERTa) that means 0. A fixed one (ALiBi) is defined only up to a shift of each query's
    row, so 0 would mean something else in each implementation and at each length: a prompt
    is as near as the nearest key that the query sees. For a plain mask both give 0; so does a
    row that sees no key at all.
    """
    if learned:
        return torch.zeros_like(bias[..., :1])
    nearest = bias.amax(-1, keepdim=True)
    return nearest.masked_fill(nearest == -torch.inf, 0.0)


def prompted_attention(
    prompts: Prompts,
    learned_bias: bool,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    windows: int | None = None,
) -> Tensor:
    """`scaled_dot_product_attention` over prompts and keys: every query sees every prompt.

    Windows may lie before the heads (in axis 1) or behind them (in axis 2), and see the same prompts.
    """
    keys, values = join_prompts(prompts, key.shape[1 if windows == 2 else -3], key)
    keys, values = _in_windows(keys, windows), _in_windows(values, windows)
    length = keys.shape[-2]
    if is_causal:
        # What the flag means to torch: aligned at the upper left corner.
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None:
        attn_mask = _extended(attn_mask, length, key.shape[-2], learned_bias)
    rows = key.shape[:-2]
    return F.scaled_dot_product_attention(
        query,
        torch.cat([keys.expand(*rows, *keys.shape[-2:]), key], -2),
        torch.cat([values.expand(*rows, *values.shape[-2:]), value], -2),
        attn_mask=attn_mask,
        dropout_p=dropout_p,
        scale=scale,
        enable_gqa=enable_gqa,
    )


def _extended(mask: Tensor, length: int, keys: int, learned: bool) -> Tensor:
    mask = mask.expand(*mask.shape[:-1], keys)  # a mask of one column stands for all
    shape = (*mask.shape[:-1], length)
    if mask.dtype == torch.bool:
        return torch.cat([mask.new_ones(shape), mask], -1)
    return torch.cat([prompt_bias(mask, learned).expand(shape), mask], -1)


def prompt_scores(
    query: Tensor, prompts: Prompts, heads: int, factor: float | None, windows: int | None = None
) -> Tensor:
    """Returns the scores of prompts, (batch, heads, queries, n), times `factor`.

    The query is (batch, heads, queries, width), or has its first two axes flattened, or has
    `windows` in axis 1 or 2, as the scores then have. Without a factor, that of
    `scaled_dot_product_attention` is taken.
    """
    query = query.unflatten(0, (-1, heads)) if query.dim() == 3 else query
    keys = _in_windows(join_prompts(prompts, heads, query)[0], windows)
    scores = query @ keys.transpose(-1, -2)
    return scores * (query.shape[-1] ** -0.5 if factor is None else factor)


def joint_softmax(
    scores: Tensor, of_prompts: Tensor, bias: Tensor | None, learned: bool, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """Returns the probabilities of the keys, shaped as `scores`, and of the prompts, under one softmax."""
    length = of_prompts.shape[-1]
    if bias is not None:
        of_prompts = of_prompts + prompt_bias(bias, learned).reshape(*of_prompts.shape[:-1], 1)
    joint = torch.cat([of_prompts.reshape(*scores.shape[:-1], length).to(scores.dtype), scores], -1)
    probabilities = joint.softmax(-1, dtype=dtype)
    return probabilities[..., length:], probabilities[..., :length]


def add_prompt_values(
    context: Tensor, probabilities: Tensor, prompts: Prompts, heads: int, windows: int | None = None
) -> Tensor:
    """Returns `context` plus what the prompts' values contribute under `probabilities`."""
    flat = _by_heads(probabilities, heads)
    values = _in_windows(join_prompts(prompts, heads, flat)[1], windows)
    return context + (flat @ values).reshape(context.shape).to(context.dtype)


def _by_heads(probabilities: Tensor, heads: int) -> Tensor:
    """Returns (batch, heads, ..., queries, keys) of what may have its first two axes flattened."""
    if probabilities.dim() == 5:
        return probabilities
    return probabilities.reshape(-1, heads, *probabilities.shape[-2:])


def _in_windows(prompts: Tensor, windows: int | None) -> Tensor:
    """Returns (..., heads, n, width) with an axis for windows where there are some: in axis 1 or 2."""
    return prompts if windows is None else prompts.unsqueeze(-3 if windows == 2 else -4)


def _by_head(gates: Tensor, like: Tensor, windows: int | None) -> Tensor:
    """Returns one gate a head, so shaped that it goes with probabilities."""
    behind = like.dim() - 2 - (windows == 1)
    return gates.to(like.dtype).view(-1, *[1] * behind)


def add_gated_attention(
    context: Tensor,
    query: Tensor,
    prompts: Prompts,
    gates: Tensor,
    scale: float | None,
    windows: int | None = None,
) -> Tensor:
    """Returns the result of `scaled_dot_product_attention` plus what its queries find in prompts apart.

    Where the queries of a group stand one after another, (batch, key_heads, group, width), so
    do their gates.
    """
    heads = query.shape[2 if windows == 1 else 1]
    probabilities = prompt_scores(query, prompts, heads, scale, windows).softmax(-1)
    if windows is None:
        shares = probabilities * gates.to(probabilities.dtype).view(heads, -1, 1)
    else:
        shares = probabilities * _by_head(gates, probabilities, windows)
    return add_prompt_values(context, shares, prompts, heads, windows)


def gated_softmax(scores: Tensor, gates: Tensor, heads: int, windows: int | None = None) -> Tensor:
    """Returns the probabilities of prompts, (batch, heads, queries, n), times the gate of each head."""
    probabilities = _by_heads(scores, heads).softmax(-1)
    return probabilities * _by_head(gates, probabilities, windows)


def by_head(projected: Tensor, heads: int) -> Tensor:
    """Returns (heads, n, width) of keys or values (n, heads · width)."""
    return projected.unflatten(-1, (heads, -1)).transpose(0, 1)
