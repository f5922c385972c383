"""What a projection is applied to in a local graph, and what stands for its output."""

from typing import Any

from torch.fx import Graph, Node

from peft_compiler.lowering.anchored import anchored, tensors_given
from peft_compiler.lowering.nodes import current
from peft_compiler.site import Projection

INPUT_OPERAND = {"linear": 0, "addmm": 1, "baddbmm": 1}
"""Which operand of an op is the data, where it is always the same; else, it is the one that is no weight."""


def applied(graph: Graph, place: Projection) -> tuple[Any, Node]:
    """Returns what a projection is applied to, and what stands for its output after earlier edits."""
    if place.anchor is None:
        # The whole forward is the projection, whether it is one call of the host or its ops.
        (output,) = graph.output_node().args
        assert isinstance(output, Node)
        return next(node for node in graph.nodes if node.op == "placeholder"), output
    op = anchored(graph, place.anchor)
    if place.anchor.op in INPUT_OPERAND:
        data = op.args[INPUT_OPERAND[place.anchor.op]]
    else:
        data = next(operand for operand in tensors_given(op) if not _reads(operand, place.weight))
    while isinstance(data, Node) and "applied_to" in data.meta:
        data = data.meta["applied_to"]
    return data, _with_bias(op, place.bias)


def _with_bias(op: Node, bias: str | None) -> Node:
    """Returns what stands for the output of `op` after earlier edits, with the bias that follows it."""
    output = current(op)
    if bias is None or any(_reads(operand, bias) for operand in op.all_input_nodes):
        return output
    adds = (user for user in output.users if any(_reads(operand, bias) for operand in user.all_input_nodes))
    return current(next(adds, output))


def _reads(node: Node, parameter: str) -> bool:
    """Whether a value is a parameter, up to its shape and type."""
    while node.op in ("call_function", "call_method") and len(node.all_input_nodes) == 1:
        (node,) = node.all_input_nodes
    return node.op == "get_attr" and node.target == parameter
