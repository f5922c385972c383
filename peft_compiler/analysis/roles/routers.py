"""The projections that choose experts."""

from torch import fx

from peft_compiler.analysis.module_graph import fact
from peft_compiler.analysis.ops import SELECTIONS, kind, selected
from peft_compiler.analysis.roles.linears import Dataflow, Linear


def find_routers(flow: Dataflow) -> tuple[Linear, ...]:
    """Returns the linears whose outputs become an index into a weight, in order of execution."""
    found: dict[fx.Node, None] = {}
    seen: set[fx.Node] = set()
    for node in flow.graph.nodes:
        picks_a_weight = kind(node) in SELECTIONS and node in flow.taint.bases
        if picks_a_weight:
            for index in selected(node)[1]:
                if index in flow.taint.routed:
                    found.update(dict.fromkeys(_nearest(flow, index, seen)))
    return tuple(flow.linears[node] for node in sorted(found, key=lambda node: fact(node).order))


def _nearest(flow: Dataflow, index: fx.Node, seen: set[fx.Node]) -> list[fx.Node]:
    found: list[fx.Node] = []
    stack = [index]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in flow.linears:
            found.append(node)
        else:
            stack.extend(source for source in node.all_input_nodes if _is_computed(flow, source))
    return found


def _is_computed(flow: Dataflow, node: fx.Node) -> bool:
    return node in flow.taint.activations or node in flow.taint.routed
