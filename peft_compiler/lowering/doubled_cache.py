"""Caches of a forward that runs twice: the keys and values of the first run stand beside those of the second.

Between calls a cache holds the layers of both, so that whoever reorders, crops, repeats or
empties it does so to both. During a call each run sees its own half, under the indices that
it knows.
"""

import copy
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from peft_compiler.errors import LoweringError
from peft_compiler.lowering.hidden_positions import CACHES, is_empty
from peft_compiler.lowering.snapshots import snapshot

_DOUBLED = "layers_of_first_run"
"""Attribute of a cache that says how many of its layers, the last ones, are those of the first run."""


@contextmanager
def parted(arguments: Mapping[str, Any]) -> Generator[Mapping[str, Any]]:
    """Gives the arguments for the first run; while it lasts, `arguments` are those for the second.

    Raises:
        LoweringError: If a cache was filled by one run only, or has no layers that could be told apart.
    """
    caches = {name: arguments[name] for name in CACHES if arguments.get(name) is not None}
    firsts = {name: _first_half(cache) for name, cache in caches.items()}
    try:
        yield {**arguments, **firsts}
    finally:
        for name, cache in caches.items():
            _join(cache, firsts[name])


def join_new(arguments: Mapping[str, Any], first: Any, second: Any) -> None:
    """Joins the caches that two runs returned, where they made them themselves."""
    if all(arguments.get(name) is None for name in CACHES):
        made, cache = _returned(first), _returned(second)
        if made is not None and cache is not None:
            _join(cache, made)


def _returned(output: Any) -> Any:
    """Returns the cache among what a forward returned, or None."""
    if isinstance(output, Mapping):
        return next((output[name] for name in CACHES if output.get(name) is not None), None)
    items = output if isinstance(output, tuple) else ()
    return next((item for item in items if _parts(item)), None)


def _parts(cache: Any) -> dict[str, Any]:
    """Returns what holds layers: the cache itself, or the caches within it by their names."""
    if hasattr(cache, "layers"):
        return {"": cache}
    return {name: part for name, part in getattr(cache, "__dict__", {}).items() if hasattr(part, "layers")}


def _first_half(cache: Any) -> Any:
    """Returns a cache with the layers of the first run, and leaves those of the second in `cache`."""
    if not _parts(cache):
        raise LoweringError(
            f"a cache of type {type(cache).__name__} was given to a forward that runs twice; "
            "expected one with a list of layers, or use_cache=False"
        )
    first = copy.copy(cache)
    for name, part in _parts(cache).items():
        twin = first if not name else copy.copy(part)
        doubled = getattr(part, _DOUBLED, None)
        if doubled is not None:
            split = len(part.layers) - doubled
            part.layers, twin.layers = part.layers[:split], part.layers[split:]
        elif is_empty(part):
            twin.layers = snapshot(part.layers)
        else:
            raise LoweringError(
                "a cache was filled without the first of the two runs that a mixture of LoRAs takes; "
                "start with an empty one"
            )
        if name:
            setattr(first, name, twin)
    for name, value in vars(first).items():
        if isinstance(value, dict):  # where a cache notes which of its layers were written
            setattr(first, name, dict(value))
    return first


def _join(cache: Any, first: Any) -> None:
    """Puts the layers of `first` behind those of `cache`."""
    firsts = _parts(first)
    for name, part in _parts(cache).items():
        setattr(part, _DOUBLED, len(firsts[name].layers))
        part.layers = [*part.layers, *firsts[name].layers]
