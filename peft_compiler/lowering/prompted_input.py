"""Calls of a tower whose tokens are preceded by trained embeddings.

Prompt tuning (arXiv:2104.08691, section 2) puts P of shape (n, d) in front of the embeddings
X of shape (T, d). Here the tower's module is called with [P; X], and with masks and positions
to match. Its states are shortened again, so that heads, losses and callers keep their own T
positions; where a decoder attends to them they stay, and its mask is made longer.

Names of arguments are those of transformers' forwards, which every one of its models shares.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from peft_compiler.lowering.behind_padding import behind_padding
from peft_compiler.lowering.edit import Standing
from peft_compiler.lowering.ensembles import member_prompts
from peft_compiler.lowering.hidden_positions import (
    cache_in,
    fixed_size,
    hide,
    holds_keys_alone,
    is_empty,
    make_room,
    note_padding,
    show,
)
from peft_compiler.lowering.packed import expect_one_in_each_row
from peft_compiler.lowering.prompted_calls import EMBEDDINGS, MASK, POSITIONS, Arguments, left_padding
from peft_compiler.lowering.prompted_mask import as_long_as, extended_mask


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
    standing: Standing,
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
        standing: Where they stand in a padded row.
    """
    length, cache = prompts.shape[-2], cache_in(arguments)
    first = is_empty(cache)
    expect_one_in_each_row(arguments if first else {}, "a soft prompt stands once in each row")
    if first:
        make_room(cache, length, getattr(getattr(module, "config", None), "sliding_window", None))
        note_padding(cache, left_padding(arguments, standing))
    else:
        show(cache, length, hidden)
    padding = left_padding(arguments, standing)
    changed: dict[str, Any] = {}
    for name, value in arguments.items():
        if value is None:
            continue
        if name == MASK:
            size = fixed_size(cache)
            longer = extended_mask(value, length, first, size is not None, padding)
            changed[name] = as_long_as(longer, size) if holds_keys_alone(cache) else longer
        elif name == POSITIONS:
            changed[name] = _extended_positions(value, length, first, padding)
        elif name == "cache_position":  # tells where positions lie, whatever they are
            changed[name] = _extended_positions(value, length, first)
        elif first and name.endswith("token_type_ids"):
            changed[name] = behind_padding(functional.pad(value, (length, 0)), padding, length, 1)
    if first and not takes_embeddings:
        ids = arguments[tokens]
        changed[tokens] = torch.cat([ids[:, :1].expand(-1, length), ids], 1)
    elif first:
        embeddings = arguments.get(EMBEDDINGS)
        if embeddings is None:
            embeddings = module.get_submodule(table)(arguments[tokens])
        longer = in_front(prompts, embeddings)
        changed |= {tokens: None, EMBEDDINGS: behind_padding(longer, padding, length, 1)}
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


def _extended_positions(positions: Tensor, length: int, first: bool, padding: Tensor | None = None) -> Tensor:
    later = positions + length
    if not first:
        return later
    prompts = torch.arange(length, device=positions.device, dtype=positions.dtype)
    longer = torch.cat([prompts.expand(*positions.shape[:-1], -1), later], -1)
    return longer if longer.dim() == 1 else behind_padding(longer, padding, length, -1, rows=-2)


def hiding(output: Any, arguments: Arguments, length: int, standing: Standing) -> Any:
    """Returns `output`; the cache of the call hides `length` positions again."""
    cache = cache_in(arguments)
    if cache is None:
        cache = cache_in(output)
        note_padding(cache, left_padding(arguments, standing))
    if cache is not None:
        hide(cache, length)
    return output


def called_by_name(forward: Callable[..., Any]) -> Callable[[nn.Module, Arguments], Any]:
    """Returns `forward` as a function of a module and its arguments by name."""

    def call(module: nn.Module, arguments: Arguments) -> Any:
        return forward(module, **arguments)

    call.__name__ = call.__qualname__ = "forward"
    return call
