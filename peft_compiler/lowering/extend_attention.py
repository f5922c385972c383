"""Puts trained keys and values in front of an attention's own, in its local graph.

Where attention is one op, that op is exchanged. Where it is spelt out as scores, softmax and
context, the prompts' scores take the same way as the keys' own (scale, soft cap, dropout),
share one softmax with them, and add their values to the context; what the forward returns
as attention weights keeps the user's length.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, Node

from peft_compiler.errors import LoweringError
from peft_compiler.lowering.prompted import (
    add_prompt_values,
    joint_softmax,
    prompt_scores,
    prompted_attention,
)
from peft_compiler.lowering.spelt_out import SpeltOut, between, op_name, spelt_out
from peft_compiler.site import Anchor, Core

_FUSED = "scaled_dot_product_attention"
_CORES = (_FUSED, "softmax")
_ADDITIVE = frozenset({"add", "sub", "rsub", "iadd", "isub", "masked_fill", "where"})
"""Ops that bring a mask or a position bias into the scores."""

_MASKS = frozenset({"masked_fill", "where"})
"""Ops that let probabilities of keys be zero; prompts are never hidden."""

_SAME_VALUES = frozenset(
    {"view", "reshape", "flatten", "unflatten", "contiguous", "transpose", "permute", "squeeze", "unsqueeze"}
    | {"expand", "to", "float", "half", "bfloat16", "type", "type_as", "clone", "getitem", "cat", "detach"}
)
"""Ops that change the layout, the dtype or the columns of the scores, but no score."""

_SCALES = frozenset({"mul", "imul"})
"""Ops that scale the scores, or multiply what is masked with zero."""

_SUMMARIES = frozenset({"amax", "max", "values", "getattr", "logsumexp"})


def extend_attention(graph: Graph, core: Core, prompts: Node) -> None:
    """Lets the attention `core` attend to `prompts` too: a node that gives (keys, values).

    Raises:
        LoweringError: If the attention of this graph has a form that is not known.
    """
    op = core_node(graph, core.anchor)
    if op.target is prompted_attention:
        op.update_arg(0, (*op.args[0], prompts))  # pyright: ignore[reportGeneralTypeIssues, reportOptionalIterable]
    elif op_name(op) == _FUSED:
        op.target = prompted_attention
        op.args = ((prompts,), core.learned_bias, *op.args)
        if core.windows is not None:
            op.kwargs = {**op.kwargs, "windows": core.windows}
    else:
        _extend_softmax(graph, core, op, prompts)


def keys_and_values(graph: Graph, core: Core) -> tuple[Node, Node]:
    """Returns the attention's own keys, as (..., keys, key_width), and values, as (..., keys, value_width).

    Raises:
        LoweringError: If the attention of this graph has a form that is not known.
    """
    op = core_node(graph, core.anchor)
    if op_name(op) == _FUSED:
        _, keys, values = op.args[:3]
        return keys, values  # pyright: ignore[reportReturnType]
    spelt = spelt_out(graph, op, core)
    with graph.inserting_after(spelt.context.node):
        return spelt.keys(graph), spelt.values(graph)


def core_node(graph: Graph, anchor: Anchor) -> Node:
    """Returns the core's op: the one at `anchor`, or the only one reached by the same call of the forward.

    The same source line may compute attention by one op or spelt out, as the user's
    attention implementation says; both come from one instruction of the forward.
    """
    cores = [node for node in graph.nodes if node.meta.get("anchor") and node.meta["anchor"].op in _CORES]
    identities: tuple[Callable[[Anchor], object], ...] = (
        lambda found: found,
        lambda found: found.frames[:1],
        lambda found: found.frames[0][0],
    )
    for identity in identities:
        hits = [node for node in cores if identity(node.meta["anchor"]) == identity(anchor)]
        if len(hits) == 1:
            return hits[0]
    raise LoweringError(
        f"expected one attention (an op {' or '.join(_CORES)}) at {anchor.frames[0][0]}, found {len(cores)}"
    )


# ------------------------------------------------------------------ attention that is spelt out


def _extend_softmax(graph: Graph, core: Core, softmax: Node, prompts: Node) -> None:
    if "prompted" in softmax.meta:
        for call in softmax.meta["prompted"]:
            call.args = tuple((*a, prompts) if isinstance(a, tuple) else a for a in call.args)
        return
    spelt = spelt_out(graph, softmax, core)
    context = spelt.context
    with graph.inserting_before(softmax):
        given, of_prompts = scores_of_prompts(graph, core, spelt, prompts)
        bias = None if core.learned_bias else _bias(graph, spelt.scores.node, spelt.way_in)
        settings = (bias, core.learned_bias, softmax.kwargs.get("dtype"))
        joint = graph.call_function(joint_softmax, (softmax.args[0], of_prompts, *settings))
        of_keys = graph.call_function(_first, (joint,))
        of_prompts = graph.call_function(_second, (joint,))
    of_keys.meta.update(softmax.meta)  # so that it is found as the core again
    softmax.replace_all_uses_with(of_keys, delete_user_cb=lambda user: user is not joint)
    way_out = [node for node in between(graph, of_keys, context.node) if node is not joint]
    with graph.inserting_before(context.node):
        ends = (of_keys, of_keys if context.left is softmax else context.left)
        of_prompts = _follow(graph, way_out, ends, of_prompts, skip=_SAME_VALUES | _MASKS)
    of_keys.meta["prompted"] = (given, add_after(graph, core, spelt, of_prompts, prompts))
    graph.erase_node(softmax)


def add_after(graph: Graph, core: Core, spelt: SpeltOut, probabilities: Node, prompts: Any) -> Node:
    """Adds the values of `prompts` under their `probabilities` to the context; returns the call that does."""
    context = spelt.context.node
    settings = (core.heads,) if core.windows is None else (core.heads, core.windows)
    with graph.inserting_before(max(context, probabilities).next):
        by_heads = spelt.by_heads(graph)
        extended = graph.call_function(add_prompt_values, (by_heads, probabilities, (prompts,), *settings))
        result = spelt.as_before(graph, extended)
    result.meta.update({key: context.meta[key] for key in ("shape", "dtype")})
    first = extended if by_heads is context else by_heads
    context.replace_all_uses_with(result, delete_user_cb=lambda user: user is not first)
    return extended


def scores_of_prompts(graph: Graph, core: Core, spelt: SpeltOut, prompts: Any) -> tuple[Node, Node]:
    """Returns the call that scores prompts, and what becomes of it on the way that the keys' scores take."""
    factor = spelt.scores.factor
    settings = (core.heads, factor) if core.windows is None else (core.heads, factor, core.windows)
    given = graph.call_function(prompt_scores, (spelt.queries(graph), (prompts,), *settings))
    ends = (spelt.scores.node, spelt.logits)
    return given, _follow(graph, spelt.way_in, ends, given, skip=_SAME_VALUES | _ADDITIVE)


def _first(pair: tuple[Any, Any]) -> Any:
    return pair[0]


def _second(pair: tuple[Any, Any]) -> Any:
    return pair[1]


def _follow(graph: Graph, way: list[Node], ends: tuple[Node, Any], value: Node, skip: frozenset[str]) -> Node:
    """Sends `value` along a copy of `way`, from one of `ends` to the other, without ops of `skip`.

    An op of `skip` stays nevertheless when all it takes comes from `origin` (as in x - max(x)),
    since it then shifts every column alike.
    """
    origin, end = ends
    stands_for = {origin: value}
    for node in way:
        carriers = [operand for operand in node.all_input_nodes if operand in stands_for]
        if not carriers:
            continue
        tensors = [operand for operand in node.all_input_nodes if "shape" in operand.meta]
        if op_name(node) in _SUMMARIES and len(tensors) == 1:
            continue  # of a whole row, the same for every column: it is used, not followed
        others = [operand for operand in tensors if operand is not carriers[0]]
        shifts_row = op_name(node) in _ADDITIVE and bool(others) and all(operand in way for operand in others)
        columns = node.meta["shape"][-1:]
        masks = op_name(node) in _SCALES and any(o.meta["shape"][-1:] == columns != (1,) for o in others)
        if masks or (op_name(node) in skip and not shifts_row):
            stands_for[node] = stands_for[carriers[0]]
        else:
            stands_for[node] = graph.node_copy(node, lambda operand: stands_for.get(operand, operand))
    return stands_for[end]


def _bias(graph: Graph, scores: Node, way: list[Node]) -> Node | None:
    """Returns what masks and position biases add to the scores: where zero scores would come out."""
    brings = op_name(scores) == "baddbmm" or any(op_name(node) in _ADDITIVE for node in way)
    if not brings:
        return None
    origin = graph.call_function(torch.zeros_like, (scores,))
    if op_name(scores) == "baddbmm":
        given, beta = scores.args[0], scores.kwargs.get("beta", 1.0)
        origin = graph.call_function(_add_scaled, (origin, given, beta))
    copies, last = {scores: origin}, origin
    for node in way:
        if op_name(node) == "cat":
            break  # further columns, such as attention sinks, are no keys
        last = copies[node] = graph.node_copy(node, lambda operand: copies.get(operand, operand))
    return last


def _add_scaled(zeros: torch.Tensor, given: torch.Tensor, beta: float) -> torch.Tensor:
    return zeros + given * beta
