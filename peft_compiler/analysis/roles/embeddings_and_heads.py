"""Where tokens come in, and what turns the last states into the model's answer."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import fx

from peft_compiler.analysis.module_graph import fact
from peft_compiler.analysis.ops import SELECTIONS, kind, selected
from peft_compiler.analysis.roles.linears import Dataflow, Linear
from peft_compiler.analysis.roles.nearest import behind


@dataclass(frozen=True, slots=True)
class Lookup:
    """A lookup in a table by one of the model's inputs.

    Attributes:
        node: The op.
        table: The parameter.
        index: What is looked up.
        source: Name of the input that the index is.
    """

    node: fx.Node
    table: fx.Node
    index: fx.Node
    source: str


def find_lookups(flow: Dataflow) -> tuple[Lookup, ...]:
    """Returns the lookups by an input of the model, in order of execution."""
    found: list[Lookup] = []
    for node in flow.graph.nodes:
        if kind(node) not in SELECTIONS or node not in flow.taint.activations:
            continue
        table, indices = selected(node)
        for index in indices:
            if table in flow.graph.parameters and len(fact(table).shape) == 2 and index in flow.taint.inputs:
                found.append(Lookup(node, table, index, flow.taint.inputs[index]))
    return tuple(found)


def find_heads(flow: Dataflow, is_body: Callable[[fx.Node], bool]) -> tuple[Linear, ...]:
    """Returns the linears between the body and the model's outputs, in order of execution.

    The body is what `is_body` says: the blocks, and whatever has a role of its own. In a
    model without one, the heads are the linears nearest to the outputs.
    """
    outputs = [node for node in flow.graph.outputs.values() if node in flow.taint.activations]
    found: dict[fx.Node, None] = {}
    has_body = False
    seen: set[fx.Node] = set()
    stack = list(outputs)
    while stack:
        node = stack.pop()
        if is_body(node):
            has_body = True
        elif node not in seen:
            seen.add(node)
            if node in flow.linears:
                found[node] = None
            stack.extend(flow.active_inputs.get(node, ()))
    if not has_body:
        found = {node: None for output in outputs for node in behind(flow, output).linears}
    return tuple(flow.linears[node] for node in sorted(found, key=lambda node: fact(node).order))
