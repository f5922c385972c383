"""The modules that normalise, in one op or written out."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from peft_compiler.analysis.module_graph import ModuleGraph, fact
from peft_compiler.analysis.ops import CASTS, CHANNEL_NORMS, NORMS, argument, kind
from peft_compiler.analysis.roles.linears import Dataflow

_ROOTS = frozenset({"rsqrt", "sqrt", "norm"})
_AVERAGES = frozenset({"mean", "var", "sum", "norm"})


def find_norms(flow: Dataflow) -> Mapping[str, fx.Node]:
    """Returns the op that normalises, by path of the module that does nothing else, in order of execution.

    Written out, a norm divides by the root of an average, and contracts nothing.
    """
    found: dict[str, fx.Node] = {}
    kinds: dict[str, set[str]] = {}
    contracting: set[str] = set()
    for node in flow.graph.nodes:
        path = fact(node).module
        if node in flow.linears or node in flow.products:
            contracting.add(path)
        if node not in flow.taint.activations or flow.graph.modules[path].children:
            continue
        seen = kinds.setdefault(path, set())
        seen.add(kind(node))
        written_out = kind(node) in _ROOTS and bool(seen & _AVERAGES)
        if (written_out or kind(node) in NORMS) and _keeps_shape(flow.graph, path):
            found.setdefault(path, node)
    return {path: node for path, node in found.items() if path not in contracting}


@dataclass(frozen=True, slots=True)
class Affine:
    """What a norm ends in: its result times one parameter plus another.

    Attributes:
        weight: The name of the first within the norm's module, or None.
        bias: The name of the second, or None.
    """

    weight: str | None = None
    bias: str | None = None


def find_affine(graph: ModuleGraph, path: str) -> Affine:
    """Returns the parameters, used as they are, that the norm at `path` multiplies by and adds last."""
    node = graph.calls[path][0].outputs[0]
    bias: str | None = None
    while node.op == "call_function":
        if kind(node) in NORMS:
            first = 3 if kind(node) == "batch_norm" else 2
            weight, summand = (argument(node, first + i, name) for i, name in enumerate(("weight", "bias")))
            return Affine(_own_name(graph, path, weight), bias or _own_name(graph, path, summand))
        names = {operand: _own_name(graph, path, operand) for operand in node.all_input_nodes}
        own = next((name for name in names.values() if name), None)
        rest = [operand for operand, name in names.items() if not name]
        if kind(node) == "mul" and own:
            return Affine(own, bias)
        if len(rest) != 1 or not (kind(node) in CASTS or (kind(node) == "add" and own and not bias)):
            break
        bias, node = own or bias, rest[0]
    return Affine(None, bias)


def has_channels_first(node: fx.Node) -> bool:
    """Whether the op that normalises takes the second axis for the features."""
    return kind(node) in CHANNEL_NORMS


def _own_name(graph: ModuleGraph, path: str, operand: object) -> str | None:
    """Returns the name within the module at `path` of an operand that is one of its parameters, or None."""
    if not isinstance(operand, fx.Node):
        return None
    own = graph.modules[path].parameters
    prefix = f"{path}." if path else ""
    names = (name.removeprefix(prefix) for name in graph.parameters.get(operand, ()))
    return next((name for name in names if name in own), None)


def _keeps_shape(graph: ModuleGraph, path: str) -> bool:
    calls = graph.calls.get(path, ())
    if not all(call.inputs and len(call.outputs) == 1 for call in calls):
        return False
    return bool(calls) and all(fact(call.inputs[0]).shape == fact(call.outputs[0]).shape for call in calls)
