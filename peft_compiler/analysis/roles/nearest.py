"""The linears nearest to a value, before it and after it."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import fx

from peft_compiler.analysis.module_graph import fact
from peft_compiler.analysis.ops import ATTENTION, SELECTIONS, kind
from peft_compiler.analysis.roles.linears import Dataflow

_MOST_STEPS = 4000


@dataclass(frozen=True, slots=True)
class Behind:
    """What lies behind a value, up to the nearest linears.

    Attributes:
        linears: The nearest linears and their distance, nearest first.
        passed: The ops between them and the value.
        stops: Where else the search ended: products, attention, lookups, ops before the floor.
        towards: The next op on the way from each op found to the value.
    """

    linears: Mapping[fx.Node, int]
    passed: frozenset[fx.Node]
    stops: frozenset[fx.Node]
    towards: Mapping[fx.Node, fx.Node]

    def way(self, start: fx.Node) -> tuple[fx.Node, ...]:
        """Returns the ops from `start`, excluded, to the value, included."""
        steps: list[fx.Node] = []
        while start in self.towards:
            start = self.towards[start]
            steps.append(start)
        return tuple(steps)


def behind(
    flow: Dataflow, value: fx.Node, floor: int = -1, may_pass: Callable[[fx.Node], bool] = lambda _: True
) -> Behind:
    """Returns the linears nearest behind `value`, through everything that is no contraction.

    Args:
        flow: The graph.
        value: Where to start.
        floor: Ops up to this position are not looked at.
        may_pass: Whether the search goes on behind an op.
    """
    linears: dict[fx.Node, int] = {}
    passed: set[fx.Node] = set()
    stops: set[fx.Node] = set()
    towards: dict[fx.Node, fx.Node] = {}
    seen = {value}
    queue = deque([(value, 0)])
    while queue and len(passed) < _MOST_STEPS:
        node, distance = queue.popleft()
        if fact(node).order <= floor:
            stops.add(node)
        elif node in flow.linears:
            linears[node] = distance
        elif _is_end(flow, node) or not may_pass(node):
            stops.add(node)
        else:
            passed.add(node)
            for source in data_of(flow, node):
                if source not in seen:
                    seen.add(source)
                    towards[source] = node
                    queue.append((source, distance + 1))
    return Behind(linears, frozenset(passed), frozenset(stops), towards)


def _is_end(flow: Dataflow, node: fx.Node) -> bool:
    return node in flow.products or kind(node) in (ATTENTION, "embedding") or node.op != "call_function"


def data_of(flow: Dataflow, node: fx.Node) -> tuple[fx.Node, ...]:
    """Returns the activations whose features `node` carries on: no index, no factor that only scales."""
    sources = flow.active_inputs.get(node, ())
    if kind(node) in SELECTIONS:
        return sources[:1]
    if kind(node) == "mul" and len(sources) == 2:
        widths = [(fact(source).shape or (1,))[-1] for source in sources]
        if min(widths) == 1 < max(widths):
            return (sources[widths.index(max(widths))],)
    return sources


def ahead(
    flow: Dataflow, value: fx.Node, is_end: Callable[[fx.Node, fx.Node], bool], most_steps: int = 400
) -> dict[fx.Node, int]:
    """Returns the linears nearest ahead of `value` and their distance; `is_end(op, operand)` ends a way."""
    linears: dict[fx.Node, int] = {}
    seen: set[fx.Node] = set()
    queue = deque([(value, 0)])
    while queue and len(seen) < most_steps:
        node, distance = queue.popleft()
        for user in flow.active_users.get(node, ()):
            if user in seen:
                continue
            seen.add(user)
            if user in flow.linears:
                linears[user] = distance
            elif not is_end(user, node):
                queue.append((user, distance + 1))
    return linears
