"""Copies of what a forward may change, so that it can be run once more for tracing."""

import copy
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from peft_compiler.quantised import packed_in

_SHARED = (nn.Module, FunctionType, ModuleType, type, torch.dtype, torch.device)
_ATOMS = (int, float, bool, str, complex, bytes, type(None))


def snapshot(value: Any) -> Any:
    """Returns a copy of `value` on tensors of its own, detached from autograd; modules are shared.

    A plain deepcopy fails on tensors that are not leaves, and a cache that falls back to
    being shared would be updated twice.
    """
    return copy.deepcopy(
        value,
        {id(found): _copied(found) for found in parts_of(value, set()) if not _is_copied_by_parts(found)},
    )


def fingerprint(value: Any) -> tuple[object, ...]:
    """Returns something that differs once a tensor or number within `value` was changed."""
    return tuple(
        (id(found), 0 if found.is_inference() else found._version) if isinstance(found, Tensor) else found
        for found in parts_of(value, set())
        if isinstance(found, Tensor | int)
    )


def _copied(found: Any) -> Any:
    if isinstance(found, nn.Parameter) or not isinstance(found, Tensor):
        return found
    return found.detach().clone()


def _is_copied_by_parts(found: Any) -> bool:
    return not isinstance(found, (Tensor, *_SHARED)) and not type(found).__name__.endswith("Config")


def parts_of(value: Any, seen: set[int]) -> Iterator[Any]:
    """Yields `value` and everything that can be reached from it, except from what is shared."""
    if id(value) in seen:
        return
    seen.add(id(value))
    yield value
    if isinstance(value, _ATOMS) or not _is_copied_by_parts(value):
        return
    if isinstance(value, dict):
        parts = list(value.values())
    elif isinstance(value, (list, tuple, set, frozenset)):
        parts = list(value)
    else:
        parts = []
    for part in [*parts, *getattr(value, "__dict__", {}).values()]:
        yield from parts_of(part, seen)


def storage_of(tensor: Tensor) -> int:
    """Returns what is equal for tensors that share their memory."""
    try:
        return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]
    except NotImplementedError:  # some subclasses have no storage of their own
        return id(tensor)


def flat_tensors(value: Any) -> list[Tensor]:
    """Returns the tensors in a value, at any depth of lists and tuples."""
    if isinstance(value, Tensor):
        return [value]
    items = value if isinstance(value, list | tuple) else ()
    return [tensor for item in items for tensor in flat_tensors(item)]


@contextmanager
def evaluated(module: nn.Module) -> Generator[None]:
    """While it lasts, `module` and all below it are in eval mode, but for linears that keep codes."""
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    for each, _ in modes:
        if packed_in(each):
            # In eval mode, some lay their codes out anew, in place.
            each.training = True
    try:
        yield
    finally:
        for each, training in modes:
            each.training = training


@contextmanager
def preserved(module: nn.Module) -> Generator[None]:
    """Restores the buffers of `module` and the random state at the end."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
    with torch.no_grad():
        for buffer, before in buffers:
            # Compared by value: normalisations move their statistics without counting it as a write.
            if not (buffer.is_meta or is_fake(buffer) or torch.equal(buffer, before)):
                buffer.copy_(before)
