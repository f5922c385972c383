"""Which tensors an object holds, however deep: what a run returns, and what it leaves behind."""

from collections.abc import Iterator, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor

_HOLD_NOTHING = (
    str, bytes, int, float, complex, bool, type(None), type, FunctionType, MethodType, ModuleType,
    torch.dtype, torch.device, torch.layout,
)  # fmt: skip


def tensors_held(held: Any) -> Iterator[Tensor]:
    """Yields every tensor in containers and in attributes of objects, such as caches and modules."""
    seen: set[int] = set()
    todo = [held]
    while todo:
        value = todo.pop()
        if isinstance(value, _HOLD_NOTHING) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple, set, frozenset)):
            todo.extend(value)  # pyright: ignore[reportUnknownArgumentType]
        elif isinstance(value, Mapping):
            todo.extend(value.values())  # pyright: ignore[reportUnknownArgumentType]
        else:
            todo.extend(getattr(value, "__dict__", {}).values())
            slots = getattr(type(value), "__slots__", ())
            todo.extend(getattr(value, name, None) for name in ([slots] if isinstance(slots, str) else slots))
