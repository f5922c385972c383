"""Finds what a place names in a local graph: ops by their anchors, activations by what takes them."""

from torch.fx import Graph, Node, map_arg

from peft_compiler.errors import LoweringError
from peft_compiler.site import Anchor, Source


def anchored(graph: Graph, anchor: Anchor | None) -> Node:
    """Returns the node that is the op of `anchor`, or the call of the host where there is none.

    Raises:
        LoweringError: If this graph does not come by that op.
    """
    for node in graph.nodes:
        if node.meta.get("anchor") == anchor and (anchor is not None or node.meta.get("host")):
            return node
    assert anchor is not None
    raise LoweringError(
        f"the forward did not come by the op {anchor.op} at {anchor.frames[-1][0]}, where one joins; "
        "it takes another way in this mode, such as another attention implementation: compile it in that mode"
    )


def taker_of(graph: Graph, source: Source, op: Node) -> Node:
    """Returns what takes the activation that a source names: an op, or the newest call before `op`."""
    if not isinstance(source.taker, str):
        return anchored(graph, source.taker)
    modules = [node for node in graph.nodes if node.op == "call_module" and node < op]
    calls = [node for node in modules if node.target == source.taker]
    if not calls:
        raise LoweringError(f"the forward does not call its {source.taker}, whose input an insertion takes")
    return calls[-1]


def tensors_given(node: Node) -> list[Node]:
    """Returns the tensors that an op or a module is given, in order."""
    found: list[Node] = []
    map_arg((node.args, node.kwargs), found.append)
    return [argument for argument in found if "shape" in argument.meta]
