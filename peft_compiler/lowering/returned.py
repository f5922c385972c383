"""What a module returns: a tensor, or a tuple or list that begins with the one that matters."""

from typing import Any


def first_of(returned: Any) -> Any:
    """Returns the first item of a tuple or list; anything else as it is."""
    return returned[0] if isinstance(returned, (tuple, list)) else returned


def with_first(returned: Any, first: Any) -> Any:
    """Returns `returned` with `first` in place of what `first_of` gives."""
    if isinstance(returned, list):
        return [first, *returned[1:]]
    return (first, *returned[1:]) if isinstance(returned, tuple) else first
