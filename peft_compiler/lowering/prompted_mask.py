"""Masks of a tower's tokens: what they say of padding, and how they become longer for prompts."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from peft_compiler.errors import LoweringError
from peft_compiler.lowering.behind_padding import behind_padding
from peft_compiler.lowering.shown_states import seen_in


def visible_in(mask: Tensor) -> Tensor:
    """Returns where a mask, for keys or for pairs of queries and keys, lets something be seen."""
    if mask.dtype == torch.bool:
        return mask
    return mask != 0 if mask.dim() == 2 else mask == 0


def padding_of(mask: Any) -> Tensor | None:
    """Returns how many positions at the beginning of each row (batch) no query sees; None without a mask.

    A row of which nothing is seen counts as not padded.

    Args:
        mask: For keys (batch, keys), for pairs (batch, heads, queries, keys), or several by name that
            hide the same padding.
    """
    if isinstance(mask, Mapping):
        mask = next((each for each in mask.values() if each is not None), None)
    if not isinstance(mask, Tensor):
        return None
    visible = visible_in(mask)
    seen = visible if mask.dim() == 2 else visible.flatten(1, -2).any(1)
    return (seen.cumsum(-1) == 0).sum(-1) * seen.any(-1)


def extended_mask(
    mask: Any, length: int, first: bool, fixed: bool = False, padding: Tensor | None = None
) -> Any:
    """Returns a mask for `length` more keys, which are seen, and on the first call as many more queries.

    Args:
        mask: For keys (batch, T), or for pairs (batch, heads, queries, keys), or several of these by name;
            None where no more than later keys are hidden.
        length: Number of prompts.
        first: Whether the prompts are part of the call, not of a cache.
        fixed: Whether the cache has a fixed size.
        padding: Positions before the prompts of each row (batch), or None for none.
    """
    if isinstance(mask, Mapping):
        masks: list[Any] = [extended_mask(each, length, first, fixed, padding) for each in mask.values()]
        # Made for a cache of a fixed size, all say the same; the forward makes them anew from one.
        made = next((each for each in masks if each is not None), None)
        return made if made is not None and made.dim() == 2 else dict(zip(mask, masks, strict=True))
    if mask is None:
        return None  # of nothing but what comes later
    if not isinstance(mask, Tensor):
        raise LoweringError(
            f"a soft prompt cannot extend a mask of type {type(mask).__name__}; pass a tensor"
        )
    if mask.dim() == 2:
        return behind_padding(functional.pad(mask, (length, 0), value=1), padding, length, 1)
    if first and fixed:
        # Made in advance for the cache: it says no more than which keys are padding.
        keys = visible_in(mask).diagonal(dim1=-2, dim2=-1)[:, 0].long()
        return extended_mask(keys, length, first, fixed, padding)
    longer = functional.pad(mask, (length, 0), value=seen_in(mask))
    if first:
        longer = behind_padding(torch.cat([_of_prompts(mask, length), longer], -2), padding, length, 2)
    return behind_padding(longer, padding, length, 3)


def as_long_as(mask: Any, size: int | None) -> Any:
    """Returns a mask for keys (batch, T) as long as a cache of a fixed size, whose last keys nobody sees.

    Some models take the number of keys from it, as for the distances of ALiBi.
    """
    if size is None or not isinstance(mask, Tensor) or mask.dim() != 2:
        return mask
    return functional.pad(mask, (0, max(0, size - mask.shape[1])))


def _of_prompts(mask: Tensor, length: int) -> Tensor:
    """Returns what `length` prompts see of themselves, and of the keys behind them, as `mask` says it.

    Where no query sees a later key, prompts do not either; else they see what any query sees.
    """
    visible = visible_in(mask)
    causal = not visible.triu(1).any()
    among = torch.ones(length, length, dtype=torch.bool, device=mask.device)
    ahead = torch.zeros_like(visible[..., :1, :]) if causal else visible.any(-2, keepdim=True)
    sees = [among.tril() if causal else among, ahead.expand(*mask.shape[:-2], length, -1)]
    seen = torch.cat([sees[0].expand(*mask.shape[:-2], -1, -1), sees[1]], -1)
    if mask.dtype == torch.bool:
        return seen
    return torch.zeros_like(seen, dtype=mask.dtype).masked_fill(~seen, torch.finfo(mask.dtype).min)
