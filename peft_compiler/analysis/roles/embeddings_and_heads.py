"""Where tokens come in, and what turns the last states into the model's answer."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import fx

from peft_compiler.analysis.module_graph import fact
from peft_compiler.analysis.ops import CASTS, SELECTIONS, SHAPES, kind, selected
from peft_compiler.analysis.roles.linears import Dataflow, Linear
from peft_compiler.analysis.roles.nearest import behind

_KEEP = SHAPES | CASTS | {"add"}


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
    """Returns the lookups of tokens by an input of the model, in order of execution.

    Of lookups that are added up, those of tokens are in the largest table: the others tell what
    kind of token it is, or where it stands on a page.
    """
    found = _lookups_by_inputs(flow)
    sums = {lookup.node: _sums(flow, lookup.node) for lookup in found}

    def belongs_to(lookup: Lookup, other: Lookup) -> bool:
        is_smaller = fact(lookup.table).shape[0] < fact(other.table).shape[0]
        return is_smaller and not sums[lookup.node].isdisjoint(sums[other.node])

    return tuple(lookup for lookup in found if not any(belongs_to(lookup, other) for other in found))


def _sums(flow: Dataflow, node: fx.Node) -> set[fx.Node]:
    """Returns the adds that a value goes into as it is, up to its shape and type."""
    found: set[fx.Node] = set()
    todo = [node]
    while todo:
        for user in flow.active_users.get(todo.pop(), ()):
            if user not in found and kind(user) in _KEEP:
                found.add(user)
                todo.append(user)
    return {user for user in found if kind(user) == "add"}


def _lookups_by_inputs(flow: Dataflow) -> list[Lookup]:
    found: list[Lookup] = []
    for node in flow.graph.nodes:
        if kind(node) not in SELECTIONS or node not in flow.taint.activations:
            continue
        table, indices = selected(node)
        for index in indices:
            if table in flow.graph.parameters and len(fact(table).shape) == 2 and index in flow.taint.inputs:
                found.append(Lookup(node, table, index, flow.taint.inputs[index]))
    return found


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
    else:
        after = _nodes_after(flow, is_body)
        found = {node: None for node in found if node in after}
    return tuple(flow.linears[node] for node in sorted(found, key=lambda node: fact(node).order))


def _nodes_after(flow: Dataflow, is_body: Callable[[fx.Node], bool]) -> set[fx.Node]:
    """Returns what is computed from the body; a skip connection around it leads to what comes before."""
    found: set[fx.Node] = set()
    for node in flow.graph.nodes:
        if any(source in found or is_body(source) for source in flow.active_inputs.get(node, ())):
            found.add(node)
    return found
