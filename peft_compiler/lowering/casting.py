"""Inserted modules that keep another type of numbers than what flows through their host: casts in between."""

import copy
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call  # pyright: ignore[reportUnknownVariableType]
from torch.utils._pytree import tree_map


def in_own_type(inserted: nn.Module, like: Tensor, *args: Any) -> Any:
    """Returns what `inserted` makes of its arguments, computed in its own type, in the type of `like`."""
    return _cast(inserted(*_cast(args, _type_of(inserted, like.dtype))), like.dtype)


def accepted_by(inserted: nn.Module, states: Tensor) -> Tensor:
    """Returns states in the type in which `inserted` computes; as they are where it has no numbers."""
    return states.to(_type_of(inserted, states.dtype))


def in_type_of(host: nn.Module, inserted: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Returns what a copy of `host` gives when its parameters are rounded to the type of the host's.

    So it computes what the host would with these values, bit for bit, and learns in its own type. Where
    its forward was exchanged, as accelerate does to bring parameters from elsewhere, nobody else can know
    them: then it computes in its own type, and what it gives is rounded.
    """
    dtype = _type_of(host, torch.float32)
    if _type_of(inserted, dtype) == dtype:
        return inserted(*args, **kwargs)
    if any("forward" in vars(module) for module in inserted.modules()):
        return _cast(inserted(*_cast(args, _type_of(inserted, dtype)), **kwargs), dtype)
    if torch.compiler.is_compiling():
        rounded = {name: _cast(parameter, dtype) for name, parameter in inserted.named_parameters()}
        return functional_call(inserted, rounded, args, kwargs)
    # Not so in Python: it exchanges the parameters of the module itself, which other threads may be running.
    return _with_parameters(inserted, lambda parameter: _cast(parameter, dtype))(*args, **kwargs)


def _with_parameters(module: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """Returns a stand-in for one call: the module and those below, with other tensors as parameters."""
    changed = copy.copy(module)
    parameters = {name: each if each is None else change(each) for name, each in module._parameters.items()}  # pyright: ignore
    changed.__dict__["_parameters"] = parameters
    changed.__dict__["_modules"] = {
        name: each if each is None else _with_parameters(each, change)
        for name, each in module._modules.items()  # pyright: ignore[reportPrivateUsage]
    }
    return changed


def _type_of(module: nn.Module, default: torch.dtype) -> torch.dtype:
    tensors = chain(module.parameters(), module.buffers())
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), default)


def _cast(values: Any, dtype: torch.dtype) -> Any:
    def cast(leaf: Any) -> Any:
        return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return tree_map(cast, values)
