"""The signature of a call: what decides which variant of a local graph fits it."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_IMPLEMENTATIONS = ("_attn_implementation_internal", "_experts_implementation_internal")
"""Where transformers keeps the chosen kernels. The public properties take a hundred times as long to read."""


def signature_of(
    module: nn.Module, config: object, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, ...]:
    """Returns a hashable description of a call of `module`; of sizes it only says which are 1.

    Equal signatures may share a graph; what else the forward branches on is guarded there.
    """
    settings = getattr(config, "__dict__", {})
    return (
        module.training,
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
        *[settings.get(name) for name in _IMPLEMENTATIONS],
        *[kind_of(value) for value in args],
        *kwargs,
        *[kind_of(value) for value in kwargs.values()],
    )


def kind_of(value: Any) -> Any:
    """Returns what a graph may take for granted about an argument."""
    if value is None or value is True or value is False:
        return value
    kind = type(value)
    if issubclass(kind, Tensor):
        # Forwards branch on "one token or more" after a write to a cache, when it is too late to start anew.
        return Tensor, value.dtype, *[bool(size == 1) for size in value.shape]
    if kind is str:
        return value
    if kind is tuple or kind is list:
        return kind, *[kind_of(item) for item in value]
    if kind is dict:
        return kind, *value, *[kind_of(item) for item in value.values()]
    if kind is torch.dtype or kind is torch.device:
        return value
    return kind


def nearest_config(root: nn.Module, path: str) -> object:
    """Returns the config of the module at `path`, or of the nearest one above it that has one."""
    found = root.__dict__.get("config")
    module = root
    for part in filter(None, path.split(".")):
        module = getattr(module, part)
        found = module.__dict__.get("config", found)
    return found


def argument_names(forward: Callable[..., Any], count: int) -> list[str]:
    """Returns what a forward calls its first `count` positional arguments."""
    names = list(inspect.signature(forward).parameters)[1:]
    return [names[i] if i < len(names) else f"argument_{i}" for i in range(count)]
