"""Runs the recorded ops that only move elements again, on tensors that say where each element came from."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.nn import functional

from peft_compiler.analysis.meta_mode import is_real_type
from peft_compiler.analysis.module_graph import fact
from peft_compiler.analysis.ops import CONVOLUTIONS, CREATIONS, SHAPES, argument, kind, tensors
from peft_compiler.analysis.roles.linears import is_depthwise

ELSEWHERE = -1.0
"""Marks elements that come from elsewhere than the probe."""

_LARGEST_PROBE = 30_000_000
_WRITES = frozenset({"setitem", "copy"})
_LIKE = frozenset({"view_as", "reshape_as", "expand_as"})
_SUMS = frozenset({"sum", "mean"})
_MAXIMA = frozenset({"max", "amax", "max_pool1d", "max_pool2d", "max_pool3d"})


# Beyond this many, what an element was computed from is taken to be unknown.
_MOST_ORIGINS = 4

_FIRST_AND_LAST = (0, -1)
"""What indices that are not known are taken to be, one after the other."""

Origins = tuple[Any, ...]
"""Where the elements of a value come from: one tensor, or several of the same shape; empty where unknown."""


def with_destinations(ops: Iterable[fx.Node]) -> list[fx.Node]:
    """Returns `ops` in order, with what makes the tensors that some of them write to."""
    found = set(ops)
    stack = [node for node in found if kind(node) in _WRITES or kind(node) == "after_write"]
    while stack:
        destination = next(iter(tensors(stack.pop())), None)
        if destination is None or destination in found or destination.op != "call_function":
            continue
        if moves(destination) or kind(destination) in CREATIONS:
            found.add(destination)
            stack.append(destination)
    return sorted(found, key=lambda node: fact(node).order)


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


def replay(probe: Mapping[fx.Node, Tensor], ops: Iterable[fx.Node], target: fx.Node) -> tuple[Tensor, ...]:
    """Returns what arrives at `target` when the `probe` flows through `ops`.

    Ops that only move elements are run. Of an op that computes, element by element, the
    result is where its inputs came from: several tensors, where they came from several
    places. Empty where this is not known for certain.
    """
    values: dict[fx.Node, Origins] = {node: (tensor,) for node, tensor in probe.items()}
    for node in sorted(ops, key=lambda node: fact(node).order):
        if kind(node) in CREATIONS:
            values[node] = (torch.full(fact(node).shape, ELSEWHERE),)
        elif any(source in values for source in node.all_input_nodes):
            origins = _arrived(node, values)
            if origins is not None:
                values[node] = origins
    return values.get(target, ())


def _arrived(node: fx.Node, values: Mapping[fx.Node, Origins]) -> Origins | None:
    if kind(node) in _LIKE and node.args[0] not in values:
        return None  # takes no more than the shape of the probe
    # Of two tensors, the larger element by element: computed like a sum.
    if kind(node) in _MAXIMA and len(tensors(node)) == 1:
        return _pooled(node, values)
    if kind(node) in _SUMS and (summed := _summed(node, values)):
        return summed
    if kind(node) in CONVOLUTIONS and is_depthwise(node, node.all_input_nodes[1]):
        return _convolved(node, values)
    return _moved(node, values) if moves(node) else _computed(node, values)


def _convolved(node: fx.Node, values: Mapping[fx.Node, Origins]) -> Origins:
    """Returns where the channels of a depthwise convolution come from, if their positions are all alike."""
    shape, data = fact(node).shape, node.all_input_nodes[0]
    positions = len(fact(node.all_input_nodes[1]).shape) - 2
    firsts: list[Tensor] = []
    for origin in values.get(data, ()):
        # What is padded comes from elsewhere, which is less than any index.
        first = origin.amax([*range(-positions, 0)], keepdim=True)
        is_one_to_one = origin.shape[-positions - 1] == shape[-positions - 1]
        if not is_one_to_one or not torch.equal(first.where(origin != ELSEWHERE, ELSEWHERE), origin):
            return ()
        firsts.append(first.expand(shape))
    return tuple(firsts)


def _pooled(node: fx.Node, values: Mapping[fx.Node, Origins]) -> Origins:
    """Returns where maxima come from, if all that each was chosen from came from one place."""
    known = {source: values[source] for source in node.all_input_nodes if source in values}
    if not all(isinstance(each, Tensor) for origins in known.values() for each in origins):
        return ()
    highest = _moved(node, known)
    lowest = _moved(node, {source: tuple(-each for each in origins) for source, origins in known.items()})
    pairs = list(zip(map(_maxima, highest), map(_maxima, lowest), strict=True))
    return highest if all(torch.equal(high, -low) for high, low in pairs) else ()


def _summed(node: fx.Node, values: Mapping[fx.Node, Origins]) -> Origins:
    """Returns where sums come from; nothing unless all that each adds up came from one place.

    As in a short convolution that is spelt out, some may add what was padded too, if not all do.
    """
    axes, keeps = argument(node, 1, "dim"), bool(argument(node, 2, "keepdim"))
    origins = next(values[source] for source in node.all_input_nodes if source in values)
    if not isinstance(axes, (int, tuple, list)) or not all(isinstance(each, Tensor) for each in origins):
        return ()
    found: list[Tensor] = []
    for origin in origins:
        highest, lowest = origin.amax(axes, keepdim=True), origin.amin(axes, keepdim=True)
        is_alike = torch.equal(highest.where(origin != ELSEWHERE, ELSEWHERE), origin)
        if not is_alike or not bool(((lowest != ELSEWHERE) | (highest == ELSEWHERE)).any()):
            return ()
        found.append(origin.amax(axes, keepdim=keeps))
    return tuple(found)


def _maxima(found: Any) -> Tensor:
    return found if isinstance(found, Tensor) else found[0]


def moves(node: fx.Node) -> bool:
    """Whether an op moves elements, or writes them elsewhere."""
    return kind(node) in SHAPES or kind(node) in _WRITES or kind(node) == "after_write"


def _moved(node: fx.Node, values: Mapping[fx.Node, Origins]) -> Origins:
    known = [values[source] for source in node.all_input_nodes if source in values]
    origins = max(map(len, known))
    # One origin written over another would be lost.
    if not all(known) or (kind(node) in _WRITES and origins > 1):
        return ()
    unknown = [source for source in node.all_input_nodes if source not in values]
    indices = _FIRST_AND_LAST if any(map(_is_index, unknown)) else _FIRST_AND_LAST[:1]
    try:
        moved, *others = (
            tuple(_run(node, values, place, index) for place in range(origins)) for index in indices
        )
    except (RuntimeError, TypeError, IndexError, ValueError):
        return ()
    if not all(isinstance(each, Tensor) for each in moved):
        return moved
    # What depends on an index that is not known is not known either.
    alike = all(torch.equal(*pair) for other in others for pair in zip(moved, other, strict=True))
    return _distinct([moved]) if alike else ()


def _is_index(source: fx.Node) -> bool:
    return is_real_type(fact(source).dtype) and fact(source).dtype != torch.bool


def _run(node: fx.Node, values: Mapping[fx.Node, Origins], place: int, index: int) -> Any:
    """Runs an op on one origin of each of its inputs; every origin takes part in one of the runs."""

    def value_of(source: fx.Node) -> Any:
        origins = values.get(source)
        return _stand_in(source, index) if origins is None else origins[min(place, len(origins) - 1)]

    args, kwargs = fx.map_arg((node.args, node.kwargs), value_of)
    if kind(node) == "index_select":  # which counts from the front only
        named: dict[str, Any] = {**dict(zip(("input", "dim", "index"), args, strict=False)), **kwargs}
        named["index"] %= named["input"].shape[named["dim"]]
        return torch.index_select(**named)
    if kind(node) == "pad" and argument(node, 2, "mode") in (None, "constant"):
        return functional.pad(cast(Tensor, args[0]), argument(node, 1, "pad"), value=ELSEWHERE)
    out = cast(Callable[..., Any], node.target)(*args, **kwargs)
    return args[0] if kind(node) == "setitem" else out


def _stand_in(source: fx.Node, index: int) -> Tensor:
    """Returns what stands for a value that the probe does not reach; its integers are indices."""
    known = fact(source)
    if not is_real_type(known.dtype):
        return torch.full(known.shape, ELSEWHERE)
    if not _is_index(source):
        return torch.zeros(known.shape, dtype=known.dtype)
    counted = _counted(source)
    return torch.full(known.shape, index, dtype=known.dtype) if counted is None else counted


def _counted(source: fx.Node) -> Tensor | None:
    """Returns indices that count from a number to another one, in whatever shape; None for any others."""
    if kind(source) == "arange" and not source.all_input_nodes:
        given: list[Any] = [*source.args]
        limits: dict[str, Any] = {
            name: source.kwargs[name] for name in ("start", "end", "step") if name in source.kwargs
        }
        return torch.arange(*given, **limits)
    inputs = source.all_input_nodes if moves(source) else []
    counted = _counted(inputs[0]) if len(inputs) == 1 else None
    return None if counted is None else cast(Tensor, _run(source, {inputs[0]: (counted,)}, 0, 0))


def _computed(node: fx.Node, values: Mapping[fx.Node, Origins]) -> Origins | None:
    """Returns where the elements of an op's result come from; None if it is only a summary of the probe."""
    shape = fact(node).shape
    known = [(source, values[source]) for source in node.all_input_nodes if source in values]
    alike = [origins for source, origins in known if fact(source).shape == shape]
    if alike:
        return _distinct(alike) if all(alike) else ()
    for _, origins in known:
        if origins and all(isinstance(each, Tensor) and _broadcasts(each.shape, shape) for each in origins):
            return tuple(each.broadcast_to(shape) for each in origins)
    is_summary = all(_broadcasts(shape, fact(source).shape) for source, _ in known)
    return None if is_summary else ()


def _distinct(alike: Iterable[Origins]) -> Origins:
    distinct: list[Tensor] = []
    for tensor in (tensor for origins in alike for tensor in origins):
        if not any(_same_origin(tensor, other) for other in distinct):
            distinct.append(tensor)
    return tuple(distinct) if len(distinct) <= _MOST_ORIGINS else ()


def _same_origin(value: Tensor, other: Tensor) -> bool:
    return value is other or torch.equal(value, other) or torch.equal(value.unique(), other.unique())


def _broadcasts(shape: tuple[int, ...], larger: tuple[int, ...]) -> bool:
    if len(shape) > len(larger):
        return False
    return all(size in (1, full) for size, full in zip(reversed(shape), reversed(larger), strict=False))
