"""Lets an attention attend to prompts apart from its keys, and adds what comes of it through gates.

The prompts are hidden states: the attention's own projections make keys and values of them.
Their probabilities come from a softmax of their own, so that those of the keys stay as they are.
"""

from typing import Any

from torch.fx import Graph, Node

from peft_compiler.lowering.extend_attention import add_after, core_node, scores_of_prompts
from peft_compiler.lowering.prompted import (
    add_gated_attention,
    by_head,
    gated_softmax,
    prompted_attention,
)
from peft_compiler.lowering.rows import take_rows
from peft_compiler.lowering.spelt_out import spelt_out
from peft_compiler.site import Core, Projector


def gate_attention(graph: Graph, core: Core, prompts: Node, gates: Node) -> None:
    """Adds to the context of `core` what its queries find in `prompts` (n, d), times `gates` (heads).

    Raises:
        LoweringError: If the attention of this graph has a form that is not known.
    """
    assert core.keys is not None
    assert core.values is not None
    op = core_node(graph, core.anchor)
    with graph.inserting_before(gates.next):
        pair: Any = tuple(_projected(graph, prompts, each, core) for each in (core.keys, core.values))
    if op.meta["anchor"].op == "softmax":
        spelt = spelt_out(graph, op, core)
        with graph.inserting_before(op):
            _, scores = scores_of_prompts(graph, core, spelt, pair)
            probabilities = graph.call_function(gated_softmax, (scores, gates, core.heads, core.windows))
        add_after(graph, core, spelt, probabilities, pair)
    else:
        query = op.args[2 if op.target is prompted_attention else 0]
        with graph.inserting_after(op):
            settings = (query, (pair,), gates, op.kwargs.get("scale"), core.windows)
            extended = graph.call_function(add_gated_attention, (op, *settings))
        op.replace_all_uses_with(extended, delete_user_cb=lambda user: user is not extended)


def _projected(graph: Graph, prompts: Node, projector: Projector, core: Core) -> Node:
    """Returns (key_heads, n, width): what a projection of the attention gives for prompts."""
    output = graph.call_module(projector.module, (prompts,))
    if projector.rows is not None:
        output = graph.call_function(take_rows, (output, projector.rows.runs))
    return graph.call_function(by_head, (output, core.key_heads))
