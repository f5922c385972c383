"""Runs the recorded ops that only move elements again, on tensors that say where each element came from."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from peft_compiler.analysis.meta_mode import is_real_type
from peft_compiler.analysis.module_graph import fact
from peft_compiler.analysis.ops import CREATIONS, SHAPES, kind

ELSEWHERE = -1.0
"""Marks elements that come from elsewhere than the probe."""

_LARGEST_PROBE = 30_000_000
_WRITES = frozenset({"setitem", "copy"})


class _Unknown:
    """In place of a value whose elements can no longer be told apart."""


_UNKNOWN = _Unknown()


def index_along(shape: tuple[int, ...], axis: int) -> Tensor | None:
    """Returns a tensor whose elements are their own index along `axis`; None if it would be too large."""
    if torch.Size(shape).numel() > _LARGEST_PROBE:
        return None
    view = [1] * len(shape)
    view[axis] = shape[axis]
    # In float, because it stands for activations, and copied, because it may be written to.
    return torch.arange(shape[axis], dtype=torch.float32).reshape(view).expand(shape).contiguous()


def varies_along(arrived: Tensor, axis: int) -> bool:
    """Whether the first and the last element along `axis` differ; so does an axis of length 1."""
    length = arrived.shape[axis]
    return length == 1 or bool((arrived.narrow(axis, 0, 1) != arrived.narrow(axis, length - 1, 1)).any())


def replay(probe: Mapping[fx.Node, Tensor], ops: Iterable[fx.Node], target: fx.Node) -> Tensor | None:
    """Returns what arrives at `target` when the `probe` flows through `ops`.

    Ops that only move elements are run. Of an op that computes, element by element, the
    result is where its input came from. None where this is not known for certain.
    """
    values: dict[fx.Node, Any] = dict(probe)
    for node in sorted(ops, key=lambda node: fact(node).order):
        if kind(node) in CREATIONS:
            values[node] = torch.full(fact(node).shape, ELSEWHERE)
        elif any(source in values for source in node.all_input_nodes):
            value = _moved(node, values) if _moves(node) else _computed(node, values)
            if value is not None:
                values[node] = value
    arrived = values.get(target)
    return arrived if isinstance(arrived, Tensor) else None


def _moves(node: fx.Node) -> bool:
    return kind(node) in SHAPES or kind(node) in _WRITES or kind(node) == "after_write"


def _moved(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    if any(isinstance(values.get(source), _Unknown) for source in node.all_input_nodes):
        return _UNKNOWN

    def value_of(source: fx.Node) -> Any:
        return values[source] if source in values else _stand_in(source)

    args, kwargs = fx.map_arg((node.args, node.kwargs), value_of)
    try:
        out = node.target(*args, **kwargs)
    except (RuntimeError, TypeError, IndexError, ValueError):
        return _UNKNOWN
    return args[0] if kind(node) == "setitem" else out


def _stand_in(source: fx.Node) -> Tensor:
    known = fact(source)
    if is_real_type(known.dtype):
        return torch.zeros(known.shape, dtype=known.dtype)
    return torch.full(known.shape, ELSEWHERE)


def _computed(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    """Returns where the elements of an op's result come from; None if it is only a summary of the probe."""
    shape = fact(node).shape
    known = [(source, values[source]) for source in node.all_input_nodes if source in values]
    alike = [value for source, value in known if fact(source).shape == shape]
    if alike:
        same = all(isinstance(value, Tensor) and _same_origin(value, alike[0]) for value in alike)
        return alike[0] if same else _UNKNOWN
    for _, value in known:
        if isinstance(value, Tensor) and _broadcasts(value.shape, shape):
            return value.broadcast_to(shape)
    is_summary = all(_broadcasts(shape, fact(source).shape) for source, _ in known)
    return None if is_summary else _UNKNOWN


def _same_origin(value: Tensor, other: Any) -> bool:
    if not isinstance(other, Tensor) or value.shape != other.shape:
        return False
    return value is other or torch.equal(value, other) or torch.equal(value.unique(), other.unique())


def _broadcasts(shape: tuple[int, ...], larger: tuple[int, ...]) -> bool:
    if len(shape) > len(larger):
        return False
    return all(size in (1, full) for size, full in zip(reversed(shape), reversed(larger), strict=False))
