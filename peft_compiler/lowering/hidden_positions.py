"""Caches that hold positions which their user does not know of.

A soft prompt takes positions in the cache of a decoder. While the decoder runs, the cache
tells them; to everyone else, who counts positions to make masks and to go on where the
cache ends, it has the length of the user's own sequence. It knows how much padding stands
before the prompts of each row, however its rows are picked.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from peft_compiler.errors import LoweringError

CACHES = ("past_key_values", "cache_params")
"""What forwards, and what they return, call a cache."""


class HidesPositions:
    """Comes before the class of a cache that hides positions."""

    hidden: int
    room: int
    padding: Tensor | None

    @property
    def is_compileable(self) -> bool:
        """Whether masks are made in advance for it; none while positions are hidden: they would not count."""
        return not self.hidden and bool(super().is_compileable)  # pyright: ignore

    def get_seq_length(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the number of positions, without those that are hidden."""
        return super().get_seq_length(*args, **kwargs) - self.hidden  # pyright: ignore

    def get_max_length(self, *args: Any, **kwargs: Any) -> int:
        """Returns how many positions fit, without those that may be hidden; -1 for any number."""
        longest: int = super().get_max_length(*args, **kwargs)  # pyright: ignore
        return longest if longest < 0 else longest - self.room

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Adds keys and values, and returns them all.

        Raises:
            LoweringError: If a model without prompts is given what one with prompts filled.
        """
        if self.hidden:
            raise LoweringError(
                f"a cache was filled with {self.hidden} positions of a prompt, where this model has none; "
                "go on with the model that filled it, or start with an empty one"
            )
        return super().update(*args, **kwargs)  # pyright: ignore

    def reset(self) -> None:
        """Empties the cache."""
        super().reset()  # pyright: ignore
        self.hidden, self.padding = 0, None

    def reorder_cache(self, beam_idx: Tensor) -> Any:
        """Picks rows, as a beam search does."""
        self._pick(lambda padding: padding.index_select(0, beam_idx.to(padding.device)))
        return super().reorder_cache(beam_idx)  # pyright: ignore

    def batch_select_indices(self, indices: Tensor) -> Any:
        """Keeps some of the rows."""
        self._pick(lambda padding: padding[indices.to(padding.device)])
        return super().batch_select_indices(indices)  # pyright: ignore

    def batch_repeat_interleave(self, repeats: int) -> Any:
        """Repeats each row."""
        self._pick(lambda padding: padding.repeat_interleave(repeats, 0))
        return super().batch_repeat_interleave(repeats)  # pyright: ignore

    def _pick(self, rows: Callable[[Tensor], Tensor]) -> None:
        if self.padding is not None:
            self.padding = rows(self.padding)


@functools.cache
def _hiding(original: type[Any]) -> type[Any]:
    own = {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(original.__name__, (HidesPositions, original), own)


def cache_in(values: Any) -> Any:
    """Returns the cache of a decoder's own positions among the arguments or results of a forward, or None."""
    if isinstance(values, Mapping):
        found = next((values[name] for name in CACHES if values.get(name) is not None), None)
    else:
        items = values if isinstance(values, tuple) else ()
        found = next((item for item in items if hasattr(item, "layers")), None)
    return getattr(found, "self_attention_cache", found)


def is_empty(cache: Any) -> bool:
    """Whether no position was cached yet."""
    if cache is None:
        return True
    if _counts(cache):
        return bool(held_in(cache) == 0)
    return not any(any(layer.has_previous_state.values()) for layer in cache.layers)


def held_in(cache: Any) -> Any:
    """Returns how many positions a cache holds, hidden ones included; 0 where it counts none."""
    return cache.get_seq_length() + getattr(cache, "hidden", 0) if _counts(cache) else 0


def _counts(cache: Any) -> bool:
    return any(hasattr(layer, "get_seq_length") for layer in getattr(cache, "layers", ()))


def show(cache: Any, length: int, hidden: int) -> None:
    """Lets a cache that is not empty tell `length` of the `hidden` positions that it hides.

    Raises:
        LoweringError: If it hides another number: another model filled it. It is left as it was.
    """
    found = getattr(cache, "hidden", 0)
    if found != hidden:
        filled = f"with {found} positions" if found else "without the positions"
        raise LoweringError(
            f"a cache was filled {filled} of a prompt, where this model has {hidden}; "
            "go on with the model that filled it, or start with an empty one"
        )
    cache.hidden = hidden - length


def hide(cache: Any, length: int) -> None:
    """Lets a cache hide `length` more of its positions."""
    if not isinstance(cache, HidesPositions):
        cache.__class__ = _hiding(type(cache))
        cache.hidden = cache.room = 0
        cache.padding = None
    cache.hidden += length


def note_padding(cache: Any, padding: Tensor | None) -> None:
    """Lets a cache know how many positions before the prompts of each row (batch) are padding."""
    if cache is not None:
        hide(cache, 0)
        cache.padding = padding


def padding_in(cache: Any, rows: int) -> Tensor | None:
    """Returns how many positions before the prompts of each of `rows` rows are padding; None for none.

    Raises:
        LoweringError: If the cache was made for other rows, some of them padded.
    """
    padding = cache.padding
    if padding is None or len(padding) in (1, rows):
        return padding
    if padding.any():
        raise LoweringError(
            f"a cache holds the prompts of {len(padding)} rows, some behind padding, and is used for {rows}; "
            "pick its rows by its own methods (reorder_cache, batch_select_indices, batch_repeat_interleave)"
        )
    return None


def fixed_size(cache: Any) -> int | None:
    """Returns how many positions fit into a cache that was given a size, hidden ones included, or None."""
    sizes = [layer.max_cache_len for layer in getattr(cache, "layers", ()) if hasattr(layer, "max_cache_len")]
    return max(sizes, default=None)


def holds_keys_alone(cache: Any) -> bool:
    """Whether no layer of a cache keeps a state in place of keys, and reads a mask of its tokens alone."""
    return all(hasattr(layer, "get_seq_length") for layer in getattr(cache, "layers", ()))


def make_room(cache: Any, length: int, window: int | None) -> None:
    """Makes an empty cache of a fixed size larger by `length`; layers that slide, up to their `window`."""
    fixed = [layer for layer in getattr(cache, "layers", ()) if hasattr(layer, "max_cache_len")]
    if not fixed or (getattr(cache, "room", 0) and all(layer.is_initialized for layer in fixed)):
        return  # grows by itself, or was made larger before it was used the first time
    if any(layer.is_initialized for layer in fixed):
        raise LoweringError(
            f"a cache of a fixed size was allocated without room for the {length} positions of the prompt; "
            "leave it to its first use to allocate it"
        )
    hide(cache, 0)
    cache.room += length
    for layer in fixed:
        larger = layer.max_cache_len + length
        layer.max_cache_len = larger if not layer.is_sliding or window is None else min(larger, window)
