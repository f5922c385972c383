"""The modules that normalise, in one op or written out."""

from collections.abc import Mapping

from torch import fx

from peft_compiler.analysis.module_graph import ModuleGraph, fact
from peft_compiler.analysis.ops import NORMS, kind
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


def _keeps_shape(graph: ModuleGraph, path: str) -> bool:
    calls = graph.calls.get(path, ())
    if not all(call.inputs and len(call.outputs) == 1 for call in calls):
        return False
    return bool(calls) and all(fact(call.inputs[0]).shape == fact(call.outputs[0]).shape for call in calls)
