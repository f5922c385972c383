"""Inserted modules that compute in a type of their own: a quantised host has none to share."""

from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map


def in_own_type(inserted: nn.Module, like: Tensor, *args: Any) -> Any:
    """Returns what `inserted` makes of its arguments, computed in its own type, in the type of `like`."""
    tensors = chain(inserted.parameters(), inserted.buffers())
    own = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), like.dtype)
    return _cast(inserted(*_cast(args, own)), like.dtype)


def _cast(values: Any, dtype: Any) -> Any:
    def cast(leaf: Any) -> Any:
        return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return tree_map(cast, values)
