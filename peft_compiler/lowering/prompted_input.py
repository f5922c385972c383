"""Calls of a tower whose tokens are preceded by trained embeddings.

Prompt tuning (arXiv:2104.08691, section 2) puts P of shape (n, d) in front of the embeddings
X of shape (T, d). Here the tower's module is called with [P; X], and with masks and positions
to match. Its states are shortened again, so that heads, losses and callers keep their own T
positions; where a decoder attends to them they stay, and its mask is made longer.

Names of arguments are those of transformers' forwards, which every one of its models shares.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from peft_compiler.errors import LoweringError
from peft_compiler.lowering.ensembles import member_prompts
from peft_compiler.lowering.hidden_positions import (
    cache_in,
    fixed_size,
    hide,
    is_empty,
    make_room,
    show,
)
from peft_compiler.lowering.shown_states import seen_in

EMBEDDINGS = "inputs_embeds"
"""What a forward calls the embeddings that it takes in place of tokens."""

Arguments = Mapping[str, Any]


def by_name(names: tuple[str, ...], args: tuple[Any, ...], kwargs: Arguments) -> Arguments:
    """Returns the arguments of a call by name."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


def extended(
    module: nn.Module,
    prompts: Tensor,
    arguments: Arguments,
    tokens: str,
    table: str,
    takes_embeddings: bool,
    hidden: int,
) -> Arguments:
    """Returns the arguments of a call whose sequence starts with `prompts`, of shape (n, d).

    Where a cache is not empty, it holds the prompts, and only masks and positions change.

    Args:
        module: The tower's module.
        prompts: The embeddings to put in front.
        arguments: What the module is called with.
        tokens: Name of the argument that holds token ids.
        table: Name of the module below that looks tokens up.
        takes_embeddings: Whether embeddings can take the place of tokens. If not, any tokens
            do instead: their embeddings will be exchanged where they are looked up.
        hidden: Positions that a cache hides, if all is well: those of these prompts, and of the
            prompts that will stand before them.
    """
    length, cache = prompts.shape[-2], cache_in(arguments)
    first = is_empty(cache)
    if first:
        make_room(cache, length, getattr(getattr(module, "config", None), "sliding_window", None))
    else:
        show(cache, length, hidden)
    changed: dict[str, Any] = {}
    for name, value in arguments.items():
        if value is None:
            continue
        if name == "attention_mask":
            changed[name] = extended_mask(value, length, first, fixed_size(cache))
        elif name in ("position_ids", "cache_position"):
            changed[name] = _extended_positions(value, length, first)
        elif first and name.endswith("token_type_ids"):
            changed[name] = functional.pad(value, (length, 0))
    if first and not takes_embeddings:
        ids = arguments[tokens]
        changed[tokens] = torch.cat([ids[:, :1].expand(-1, length), ids], 1)
    elif first:
        embeddings = arguments.get(EMBEDDINGS)
        if embeddings is None:
            embeddings = module.get_submodule(table)(arguments[tokens])
        changed |= {tokens: None, EMBEDDINGS: in_front(prompts, embeddings)}
    return {**arguments, **changed}


def in_front(prompts: Tensor, embeddings: Tensor) -> Tensor:
    """Returns (batch, n + T, d): `prompts` in front of each of the `embeddings` (batch, T, d).

    They are (n, d) for all rows, or (members, n, d) for the rows of an ensemble in turn.
    """
    prompts, rows = prompts.to(embeddings), embeddings.shape[0]
    batch = member_prompts(prompts, rows) if prompts.dim() == 3 else prompts.expand(rows, *prompts.shape)
    return torch.cat([batch, embeddings], 1)


def spelt_out(module: nn.Module, trained: Tensor, arguments: Arguments, tokens: str, table: str) -> Arguments:
    """Returns arguments with embeddings in place of token ids.

    The id `entries + k`, beyond the vocabulary, stands for row k of `trained` (m, d).

    Args:
        module: The tower's module.
        trained: Embeddings of pseudo tokens.
        arguments: What the module is called with.
        tokens: Name of the argument that holds token ids.
        table: Name of the parameter that holds the vocabulary's embeddings.
    """
    ids = arguments.get(tokens)
    if ids is None:
        return arguments
    path, _, _ = table.rpartition(".")
    entries = module.get_parameter(table).shape[0]
    pseudo = ids >= entries
    embeddings = module.get_submodule(path)(ids.masked_fill(pseudo, 0))
    rows = trained.to(embeddings)[(ids - entries).clamp(0, len(trained) - 1)]
    return {**arguments, tokens: None, EMBEDDINGS: rows.where(pseudo.unsqueeze(-1), embeddings)}


def exchanged(prompts: Tensor, embeddings: Tensor, start: int) -> Tensor:
    """Returns `embeddings` (batch, T, d), those from `start` on exchanged for `prompts` (n, d)."""
    before, after = embeddings[:, :start], embeddings[:, start + prompts.shape[-2] :]
    return torch.cat([before, in_front(prompts, after)], 1) if start else in_front(prompts, after)


def extended_mask(mask: Any, length: int, first: bool, size: int | None = None) -> Any:
    """Returns a mask for `length` more keys, which are seen, and on the first call as many more queries.

    Args:
        mask: For keys (batch, T), or for pairs (batch, heads, queries, keys), or several of these by name;
            None where no more than later keys are hidden.
        length: Number of prompts.
        first: Whether the prompts are part of the call, not of a cache.
        size: Positions that fit into the cache, where that is fixed.
    """
    if isinstance(mask, Mapping):
        masks: list[Any] = [extended_mask(each, length, first, size) for each in mask.values()]
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
        keys = functional.pad(mask, (length, 0), value=1)
        return functional.pad(keys, (0, max(0, (size or 0) - keys.shape[1])))
    if not first:
        return functional.pad(mask, (length, 0), value=seen_in(mask))
    visible = mask if mask.dtype == torch.bool else mask == 0
    if size is not None:
        # Made in advance for the cache: it says no more than which keys are padding.
        return extended_mask(visible.diagonal(dim1=-2, dim2=-1)[:, 0].long(), length, first, size)
    return _with_queries(mask, visible, length)


def _with_queries(mask: Tensor, visible: Tensor, length: int) -> Tensor:
    """Returns a mask for pairs with `length` more keys and queries, the prompts, in front.

    Where no query sees a later key, prompts do not either; else they see what any query sees.
    """
    causal = not visible.triu(1).any()
    among = torch.ones(length, length, dtype=torch.bool, device=mask.device)
    ahead = torch.zeros_like(visible[..., :1, :]) if causal else visible.any(-2, keepdim=True)
    sees = [among.tril() if causal else among, ahead.expand(*mask.shape[:-2], length, -1)]
    top = torch.cat([sees[0].expand(*mask.shape[:-2], -1, -1), sees[1]], -1)
    if mask.dtype != torch.bool:
        top = torch.zeros_like(top, dtype=mask.dtype).masked_fill(~top, torch.finfo(mask.dtype).min)
    return torch.cat([top, functional.pad(mask, (length, 0), value=seen_in(mask))], -2)


def _extended_positions(positions: Tensor, length: int, first: bool) -> Tensor:
    later = positions + length
    prompts = torch.arange(length, device=positions.device, dtype=positions.dtype)
    return torch.cat([prompts.expand(*positions.shape[:-1], -1), later], -1) if first else later


def added(arguments: Arguments, length: int) -> int:
    """Returns how many positions a prompt of `length` adds to a call: none where it is in the cache."""
    return length if is_empty(cache_in(arguments)) else 0


def hiding(output: Any, arguments: Arguments, length: int) -> Any:
    """Returns `output`; the cache of the call hides `length` positions again."""
    cache = cache_in(arguments)
    cache = cache if cache is not None else cache_in(output)
    if cache is not None:
        hide(cache, length)
    return output


def sequence_length(arguments: Arguments) -> int:
    """Returns how many positions a call has: those of its embeddings, or else of its first argument."""
    values = (arguments.get(EMBEDDINGS), *arguments.values())
    return next(value for value in values if isinstance(value, Tensor)).shape[1]


def shortened(output: Any, length: int, positions: int, keys: int, name: str = "") -> Any:
    """Returns what a module returned without the states of prompts; what has them no more stays.

    Args:
        output: What was returned, or a part of it.
        length: Positions of the call.
        positions: How many of them, in front, are prompts.
        keys: How many keys, in front, are prompts; more than `positions` where those are in a cache.
        name: What the module calls this part.
    """
    if isinstance(output, Tensor):
        if output.dim() == 3 and output.shape[1] == length:
            return output[:, positions:]
        if output.dim() == 4 and output.shape[2] == length:  # attention maps
            return output[:, :, positions:, 0 if name.startswith("cross") else keys :]
        return output
    if isinstance(output, list | tuple):
        items = [shortened(item, length, positions, keys, name) for item in output]
        return items if isinstance(output, list) else tuple(items)
    if isinstance(output, dict):
        for key in list(output):
            output[key] = shortened(output[key], length, positions, keys, key)
    return output


def shortened_but_for_last(output: Any, length: int, positions: int) -> Any:
    """Returns what an encoder returned without states of prompts, but for the last ones, which are read.

    They come first in what it returns.
    """
    if isinstance(output, dict):
        for key in list(output)[1:]:
            output[key] = shortened(output[key], length, positions, positions, key)
        return output
    if isinstance(output, tuple):
        return (output[0], *shortened(output[1:], length, positions, positions))
    return output


def called_by_name(forward: Callable[..., Any]) -> Callable[[nn.Module, Arguments], Any]:
    """Returns `forward` as a function of a module and its arguments by name."""

    def call(module: nn.Module, arguments: Arguments) -> Any:
        return forward(module, **arguments)

    call.__name__ = call.__qualname__ = "forward"
    return call
