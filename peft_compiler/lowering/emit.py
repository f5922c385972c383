"""From a local graph to the Python function that runs."""

import operator
from collections.abc import Callable
from types import FunctionType
from typing import Any

from torch import nn
from torch.fx import Graph, Node

from peft_compiler.lowering.guards import EARLY, GUARDS

ITSELF = "itself"
"""Name under which a graph's module is an attribute of itself, for a graph that hands it on."""

_PURE_FUNCTIONS = frozenset(
    {
        getattr,
        len,
        bool,
        float,
        int,
        operator.getitem,
        operator.add,
        operator.sub,
        operator.mul,
        operator.floordiv,
    }
    | {operator.truediv, operator.mod, operator.pow, operator.neg}
    | {operator.gt, operator.lt, operator.ge, operator.le, operator.eq, operator.ne}
)
_PURE_METHODS = frozenset({"size", "dim", "numel"})


def tidy(graph: Graph) -> None:
    """Removes what nobody uses, and lets guards on the arguments' sizes come before anything else runs.

    Ops and calls of modules stay even where unused: they may draw random numbers or write.
    """
    _drop_repeated_guards(graph)
    for node in reversed(graph.nodes):
        if not node.users and (node.op == "get_attr" or _is_pure(node)):
            graph.erase_node(node)
    _hoist_guards(graph)


def emit(graph: Graph) -> tuple[str, Callable[..., Any]]:
    """Returns the source of `graph` and the function `forward(self, ...)` that it defines."""
    emitted = graph.python_code("self")
    source = emitted.src.strip().replace(f"self.{ITSELF}", "self")
    namespace: dict[str, Any] = dict(emitted.globals)
    exec(compile(source, "<local graph>", "exec"), namespace)
    return source, namespace["forward"]


def named(original: type[nn.Module]) -> Callable[..., Any]:
    """Returns the original forward under a name that generated code can call it by."""
    forward = original.forward
    named = FunctionType(
        forward.__code__, forward.__globals__, "forward", forward.__defaults__, forward.__closure__
    )
    named.__kwdefaults__ = forward.__kwdefaults__
    named.__module__ = (
        original.__name__
    )  # fx writes torch's own functions by their module, where methods are not
    return named


def _is_pure(node: Node) -> bool:
    if node.op == "call_function":
        return node.target in _PURE_FUNCTIONS
    return node.op == "call_method" and node.target in _PURE_METHODS


def _is_guard(node: Node) -> bool:
    return node.op == "call_function" and node.target in GUARDS


def _drop_repeated_guards(graph: Graph) -> None:
    seen: set[tuple[object, ...]] = set()
    for node in list(graph.nodes):
        if _is_guard(node):
            asked = (EARLY.get(node.target, node.target), node.args[0], repr(node.args[1:]))  # pyright: ignore
            if asked in seen:
                graph.erase_node(node)
            seen.add(asked)


def _hoist_guards(graph: Graph) -> None:
    """Moves each guard that depends on sizes of arguments alone to the front, in its early form."""
    early: set[Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or (
            (_is_pure(node) or _is_guard(node)) and early.issuperset(node.all_input_nodes)
        ):
            early.add(node)
    first = next((node for node in graph.nodes if node not in early), None)
    needed: set[Node] = set()
    todo = [node for node in early if _is_guard(node)]
    while todo:
        node = todo.pop()
        if node.op != "placeholder" and node not in needed:
            needed.add(node)
            todo += node.all_input_nodes
    if first is None:
        return
    for node in [node for node in graph.nodes if node in needed]:
        if first < node:
            first.prepend(node)
        if _is_guard(node):
            node.target = EARLY.get(node.target, node.target)  # pyright: ignore
