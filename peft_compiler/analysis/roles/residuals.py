"""Where a branch joins the stream that it left."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations

from torch import fx

from peft_compiler.analysis.module_graph import fact
from peft_compiler.analysis.ops import ATTENTION, CASTS, CONVOLUTIONS, SHAPES, kind, tensors
from peft_compiler.analysis.roles.linears import Dataflow, is_depthwise

# An add may join a stream that was already joined by others: attention and feed-forward in parallel.
_LONGEST_SKIP_CHAIN = 4
_SEEN_THROUGH = (SHAPES | CASTS) - {"cat", "stack"}
_SHIFTS_AND_SCALES = frozenset({"mul", "add", "truediv", "div"})


@dataclass(frozen=True, slots=True)
class Residual:
    """An add of a branch to the stream that the branch was computed from.

    Attributes:
        add: The op.
        skip: The operand that is the stream.
        branch: The other one.
        origin: Where the branch left the stream.
    """

    add: fx.Node
    skip: fx.Node
    branch: fx.Node
    origin: fx.Node

    @property
    def floor(self) -> int:
        """Position of the origin: ops of the branch come later."""
        return fact(self.origin).order


def find_residuals(flow: Dataflow) -> Mapping[fx.Node, Residual]:
    """Returns every residual add, in order of execution."""
    found: dict[fx.Node, Residual] = {}
    for node in flow.graph.nodes:
        operands = active_operands(flow, node)
        if kind(node) == "add" and len(operands) == 2 and operands[0] is not operands[1]:
            residual = _as_residual(flow, node, operands[0], operands[1], found)
            if residual is not None:
                found[node] = residual
    return found


def active_operands(flow: Dataflow, node: fx.Node) -> list[fx.Node]:
    """Returns the operands that are activations, in order."""
    return [operand for operand in tensors(node) if operand in flow.taint.activations]


def _as_residual(
    flow: Dataflow, add: fx.Node, left: fx.Node, right: fx.Node, found: Mapping[fx.Node, Residual]
) -> Residual | None:
    for skip, branch in ((left, right), (right, left)):
        stream: fx.Node | None = skip
        for _ in range(_LONGEST_SKIP_CHAIN):
            if stream is None:
                break
            origin = source_of(flow, stream)
            if _leads_through_a_layer(flow, origin, branch):
                return Residual(add, skip, branch, origin)
            stream = found[origin].skip if origin in found else _mixed_stream(flow, origin)
    return None


def _mixed_stream(flow: Dataflow, value: fx.Node) -> fx.Node | None:
    """Returns the streams that `value` is a mixture of, where they tell themselves how; else None.

    So do hyper-connections (Zhu et al. 2024, arXiv:2409.19606) keep several residual streams: a
    product with a matrix that a layer makes of the streams mixes them before a branch is added.
    """
    for stream, weights in permutations(flow.products.get(value, ()), 2):
        if fact(stream).shape == fact(value).shape:
            origin = source_of(flow, stream)
            if _leads_through_a_layer(flow, origin, weights):
                return origin
    return None


def source_of(flow: Dataflow, value: fx.Node) -> fx.Node:
    """Returns what `value` is, up to its shape, type, and constant scale and shift."""
    while value.op == "call_function":
        sources = active_operands(flow, value)
        is_shifted = kind(value) in _SHIFTS_AND_SCALES and len(sources) == 1
        if not sources or not (is_shifted or kind(value) in _SEEN_THROUGH):
            break
        value = sources[0]
    return value


def _leads_through_a_layer(flow: Dataflow, origin: fx.Node, value: fx.Node) -> bool:
    """Whether `value` was computed from `origin` with a linear or an attention in between."""
    floor = fact(origin).order
    seen: set[tuple[fx.Node, bool]] = set()
    stack = [(value, False)]
    while stack:
        node, crossed = stack.pop()
        if node is origin and crossed:
            return True
        if (node, crossed) in seen or fact(node).order <= floor:
            continue
        seen.add((node, crossed))
        crossed = crossed or is_layer(flow, node)
        stack.extend((source, crossed) for source in flow.active_inputs.get(node, ()))
    return False


def is_computed_from(flow: Dataflow, origin: fx.Node, value: fx.Node) -> bool:
    """Whether an activation is, or was computed from, another one, by whatever ops."""
    floor = fact(origin).order
    seen: set[fx.Node] = set()
    stack = [value]
    while stack:
        node = stack.pop()
        if node is origin:
            return True
        if node not in seen and fact(node).order > floor:
            seen.add(node)
            stack.extend(flow.active_inputs.get(node, ()))
    return False


def is_layer(flow: Dataflow, node: fx.Node) -> bool:
    """Whether an op is a linear, a product of activations, an attention or a convolution of channels."""
    if node in flow.linears or node in flow.products or kind(node) == ATTENTION:
        return True
    # What a depthwise convolution alone makes of a value is its neighbours' share in it, as of keys.
    return kind(node) in CONVOLUTIONS and not is_depthwise(node, tensors(node)[1])
