"""Which values no gradient comes to, since nothing that outlives the run is computed from them by numbers."""

from collections.abc import Callable, Iterable, Iterator

from torch import fx

from peft_compiler.analysis.meta_mode import is_real_type
from peft_compiler.analysis.module_graph import ModuleGraph, fact
from peft_compiler.analysis.ops import kind

NO_OUTPUT = "its result reaches no output"
NO_GRADIENT = "its result reaches the outputs only as codes or indices, or detached: no gradient comes back"

_CUTS = frozenset({"detach", "data"})
"""Ops that let no gradient through."""

DeadEnds = Callable[[fx.Node], str | None]
"""Says why no gradient comes to a value; None where one may."""


def find_dead_ends(graph: ModuleGraph) -> DeadEnds:
    """Returns what says of each value why no gradient comes to it, from all that the run left.

    That is what the model returned, and what it wrote to a cache, a buffer or an input. Where
    it left nothing that is known, nothing is said.
    """
    left = [node for node in graph.left if not is_real_type(fact(node).dtype)]
    reached = _behind(graph.left, lambda node: node.all_input_nodes)
    with_gradient = _behind(left, _with_gradient)

    def dead_end(node: fx.Node) -> str | None:
        if node in with_gradient or not graph.left:
            return None
        return NO_GRADIENT if node in reached else NO_OUTPUT

    return dead_end


def _with_gradient(node: fx.Node) -> Iterator[fx.Node]:
    """Yields what a gradient goes on to from `node`."""
    if kind(node) not in _CUTS:
        yield from (source for source in node.all_input_nodes if not is_real_type(fact(source).dtype))


def _behind(ends: Iterable[fx.Node], step: Callable[[fx.Node], Iterable[fx.Node]]) -> set[fx.Node]:
    found = set(ends)
    todo = list(found)
    while todo:
        for source in step(todo.pop()):
            if source not in found:
                found.add(source)
                todo.append(source)
    return found
