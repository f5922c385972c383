"""Puts trained keys and values in front of an attention's own, in its local graph.

Where attention is one op, that op is exchanged. Where it is spelt out as scores, softmax and
context, the prompts' scores take the same way as the keys' own (scale, soft cap, dropout),
share one softmax with them, and add their values to the context; what the forward returns
as attention weights keeps the user's length.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
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
from peft_compiler.site import Anchor, Core

_FUSED = "scaled_dot_product_attention"
_CORES = (_FUSED, "softmax")
_CONTRACTIONS = frozenset({"matmul", "bmm", "baddbmm"})
_ADDITIVE = frozenset({"add", "sub", "rsub", "iadd", "isub", "masked_fill", "where"})
"""Ops that bring a mask or a position bias into the scores."""

_SAME_VALUES = frozenset(
    {"view", "reshape", "flatten", "unflatten", "contiguous", "transpose", "permute", "squeeze", "unsqueeze"}
    | {"expand", "to", "float", "half", "bfloat16", "type", "type_as", "clone", "getitem", "cat", "detach"}
)
"""Ops that change the layout, the dtype or the columns of the scores, but no score."""

_SCALES = frozenset({"mul", "imul"})
"""Ops that scale the scores, or multiply what is masked with zero."""

_LIKE = frozenset({"expand_as", "view_as", "reshape_as", "type_as", "to"})
"""Ops that read no more of a second tensor than its shape or its dtype."""

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
    scores = _nearest([op], lambda node: node.all_input_nodes)
    context = _nearest([op], lambda node: node.users)
    with graph.inserting_after(scores):
        # The last operand is K transposed, in every form of a contraction.
        given = [*scores.args, scores.kwargs.get("batch1"), scores.kwargs.get("batch2")]
        transposed = [argument for argument in given if isinstance(argument, Node)][-1]
        keys = graph.call_method("transpose", (transposed, -1, -2))
    return keys, context.args[1]  # pyright: ignore[reportReturnType]


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


def op_name(node: Node) -> str:
    """Returns the name of the op that `node` calls, without underscores around it."""
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return target.strip("_") if node.op in ("call_function", "call_method") else node.op


# ------------------------------------------------------------------ attention that is spelt out


def _extend_softmax(graph: Graph, core: Core, softmax: Node, prompts: Node) -> None:
    if "prompted" in softmax.meta:
        for call in softmax.meta["prompted"]:
            call.args = tuple((*a, prompts) if isinstance(a, tuple) else a for a in call.args)
        return
    spelt = spelt_out(graph, softmax)
    context = spelt.context
    with graph.inserting_before(softmax):
        given, of_prompts = scores_of_prompts(graph, core, spelt, prompts)
        bias = None if core.learned_bias else _bias(graph, spelt.scores, softmax, spelt.way_in)
        settings = (bias, core.learned_bias, softmax.kwargs.get("dtype"))
        joint = graph.call_function(joint_softmax, (softmax.args[0], of_prompts, *settings))
        of_keys = graph.call_function(_first, (joint,))
        of_prompts = graph.call_function(_second, (joint,))
    of_keys.meta.update(softmax.meta)  # so that it is found as the core again
    softmax.replace_all_uses_with(of_keys, delete_user_cb=lambda user: user is not joint)
    way_out = [node for node in _between(graph, of_keys, context) if node is not joint]
    with graph.inserting_before(context):
        of_prompts = _follow(graph, way_out, (of_keys, context.args[0]), of_prompts, skip=_SAME_VALUES)
    of_keys.meta["prompted"] = (given, add_after(graph, core, context, of_prompts, prompts))
    graph.erase_node(softmax)


def add_after(graph: Graph, core: Core, context: Node, probabilities: Node, prompts: Any) -> Node:
    """Adds the values of `prompts` under their `probabilities` to the context; returns the call that does."""
    latest = max(node for node in (context, probabilities))
    with graph.inserting_after(latest):
        extended = graph.call_function(add_prompt_values, (context, probabilities, (prompts,), core.heads))
    extended.meta.update({key: context.meta[key] for key in ("shape", "dtype")})
    context.replace_all_uses_with(extended, delete_user_cb=lambda user: user is not extended)
    return extended


@dataclass(frozen=True, slots=True)
class SpeltOut:
    """An attention in several ops.

    Attributes:
        logits: What the softmax is taken of.
        scores: The contraction of queries and keys.
        way_in: The ops from the scores to the logits.
        context: The contraction of probabilities and values.
    """

    logits: Node
    scores: Node
    way_in: list[Node]
    context: Node


def spelt_out(graph: Graph, softmax: Node) -> SpeltOut:
    """Returns the attention around a softmax, or around what replaced it."""
    if "spelt_out" not in softmax.meta:
        _check_axis(softmax)
        scores = _nearest([softmax], lambda node: node.all_input_nodes)
        context = _nearest([softmax], lambda node: node.users)
        logits: Any = softmax.args[0]
        softmax.meta["spelt_out"] = SpeltOut(logits, scores, _between(graph, scores, softmax), context)
    return softmax.meta["spelt_out"]


def scores_of_prompts(graph: Graph, core: Core, spelt: SpeltOut, prompts: Any) -> tuple[Node, Node]:
    """Returns the call that scores prompts, and what becomes of it on the way that the keys' scores take."""
    query, factor = _query_of(spelt.scores)
    given = graph.call_function(prompt_scores, (query, (prompts,), core.heads, factor))
    ends = (spelt.scores, spelt.logits)
    return given, _follow(graph, spelt.way_in, ends, given, skip=_SAME_VALUES | _ADDITIVE)


def _first(pair: tuple[Any, Any]) -> Any:
    return pair[0]


def _second(pair: tuple[Any, Any]) -> Any:
    return pair[1]


def _check_axis(softmax: Node) -> None:
    axis = softmax.kwargs.get("dim", softmax.args[1] if len(softmax.args) > 1 else None)
    if axis not in (-1, len(softmax.meta["shape"]) - 1):
        raise LoweringError(
            f"an attention normalises axis {axis} of its scores; expected the last one, the keys"
        )


def _nearest(start: list[Node], step: Callable[[Node], Iterable[Node]]) -> Node:
    """Returns the contraction of two activations that is nearest to `start`, breadth first."""
    seen, layer = set(start), start
    while layer:
        layer = list(
            dict.fromkeys(
                near for node in layer for near in step(node) if near not in seen and "shape" in near.meta
            )
        )
        hits = [
            node
            for node in layer
            if op_name(node) in _CONTRACTIONS and not any(n.op == "get_attr" for n in node.all_input_nodes)
        ]
        if hits:
            return hits[0]
        seen.update(layer)
    raise LoweringError(
        f"a softmax is not between two contractions of activations ({', '.join(sorted(_CONTRACTIONS))})"
    )


def _query_of(scores: Node) -> tuple[Node, float]:
    """Returns the query operand of the contraction that gives `scores`, and what it multiplies them with."""
    if op_name(scores) == "baddbmm":
        # torch.baddbmm(input, batch1, batch2, beta, alpha), or the method of `input`
        query = scores.kwargs.get("batch1", scores.args[1] if len(scores.args) > 1 else None)
        return query, scores.kwargs.get("alpha", 1.0)  # pyright: ignore[reportReturnType]
    return scores.args[0], 1.0  # pyright: ignore[reportReturnType]


def _between(graph: Graph, first: Node, last: Node) -> list[Node]:
    """Returns the tensors on a way from `first` to `last`, both excluded, in order; sizes lead nowhere."""
    after, before = _reach(first, _carrying), _reach(last, lambda node: node.all_input_nodes)
    return [node for node in graph.nodes if node in after and node in before]


def _carrying(node: Node) -> list[Node]:
    """Returns the users of a value that go on with it, not those that make something else as large."""
    return [user for user in node.users if op_name(user) not in _LIKE or user.all_input_nodes[0] is node]


def _reach(start: Node, step: Callable[[Node], Iterable[Node]]) -> set[Node]:
    found: set[Node] = set()
    todo = [start]
    while todo:
        for near in step(todo.pop()):
            if near not in found and "shape" in near.meta:
                found.add(near)
                todo.append(near)
    return found


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


def _bias(graph: Graph, scores: Node, softmax: Node, way: list[Node]) -> Node | None:
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
