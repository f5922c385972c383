"""Features that lie in several axes, as of queries with an axis for heads: seen as one, and put back.

Inserted modules know vectors and matrices alone.
"""

from torch.fx import Graph, Node

from peft_compiler.methods._weights import as_matrix
from peft_compiler.site import Projection


def vectors_in(graph: Graph, data: Node, place: Projection) -> Node:
    """Returns what flows into a projection with its features in the last axis alone."""
    return data if place.axes[0] == 1 else graph.call_method("flatten", (data, -place.axes[0]))


def vectors_out(graph: Graph, output: Node, place: Projection) -> Node:
    """Returns what flows out of a projection with its features in the last axis alone."""
    return output if place.axes[1] == 1 else graph.call_method("flatten", (output, -place.axes[1]))


def matrix(graph: Graph, weight: Node, place: Projection) -> Node:
    """Returns the matrix that a weight stands for."""
    if place.axes == (1, 1):
        return weight
    return graph.call_function(as_matrix, (weight, place.form, place.axes))


def shaped_like(graph: Graph, value: Node, like: Node, place: Projection) -> Node:
    """Returns `value` in the shape of what it joins or stands for."""
    return value if place.axes == (1, 1) else graph.call_method("reshape_as", (value, like))
