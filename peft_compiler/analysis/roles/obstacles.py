"""Why nothing can join an attention: where prompts would not meet the queries as its own keys do."""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, fx

from peft_compiler.analysis.module_graph import fact
from peft_compiler.analysis.ops import ATTENTION, argument, kind
from peft_compiler.analysis.roles.attention import Attention
from peft_compiler.analysis.roles.linears import Dataflow, letters_of
from peft_compiler.analysis.roles.nearest import behind
from peft_compiler.analysis.roles.replay import (
    ELSEWHERE,
    index_along,
    moves,
    replay,
    with_destinations,
)
from peft_compiler.analysis.roles.windows import find_windows, has_heads_behind_batch

_RESHAPES = frozenset({"view", "reshape", "flatten", "unflatten", "contiguous", "squeeze", "unsqueeze"})
"""Ops after which all numbers come in the same order as before."""


def find_obstacle(flow: Dataflow, attention: Attention) -> str | None:
    """Returns the first reason why keys cannot be put in front of an attention's own; None without any.

    An attention that is one op is what the op says, but for windows. One that is spelt out is
    taken to be softmax(scores) values only where this is seen: each key has one column of the
    scores, in order, from their product to the softmax and on to the values, and the scores are
    laid out as (batch, heads, queries, keys), with the first two axes as one, or with windows
    before or behind the heads.
    """
    if kind(attention.meeting.core) == ATTENTION:
        axes = len(fact(attention.meeting.query).shape)
        return next(_unknown_heads(flow, attention, axes), None) if axes == 5 else None
    return next(_obstacles(flow, attention), None)


def _obstacles(flow: Dataflow, attention: Attention) -> Iterator[str]:
    meeting = attention.meeting
    softmax, scores = meeting.core, meeting.scores
    assert scores is not None
    if kind(softmax) != "softmax":
        yield f"its softmax is spelt out, and ends in {kind(softmax)}"
        return
    dimensions, axis = len(fact(softmax).shape), argument(softmax, 1, "dim")
    if axis not in (-1, dimensions - 1):
        yield f"its softmax runs over axis {axis} of {dimensions}, not over the last one"
        return
    if not _is_known_product(flow, scores, meeting.key, _are_scores):
        yield "its scores are not laid out as (batch, heads, queries, keys)"
        return
    if not _is_known_product(flow, meeting.context, meeting.value, _is_context):
        yield "its probabilities are not laid out as (batch, heads, queries, keys) where they meet the values"
        return
    logits = flow.active_inputs[softmax][0]
    has_more_columns = fact(softmax).shape[-1] > fact(scores).shape[-1]
    products = [stop for stop in behind(flow, logits).stops if stop in flow.products]
    if not _keeps_columns(flow, scores, logits, may_add=True) or (has_more_columns and len(products) > 1):
        yield "its scores do not go to the softmax with one column for each key, as where keys lie in blocks"
    elif len(fact(scores).shape) not in (3, 4, 5):
        yield f"its scores have {len(fact(scores).shape)} axes; expected (batch, heads, queries, keys)"
    elif _rows(_other(flow, meeting.context, meeting.value)) != _rows(softmax):
        yield "its probabilities are combined on their way to the values"
    elif not _keeps_columns(flow, softmax, _other(flow, meeting.context, meeting.value)):
        yield "its probabilities do not go to the values with one column for each key"
    elif any(stop in flow.products for stop in behind(flow, meeting.value).stops):
        yield "its values are products themselves, as where attention is approximated"
    else:
        yield from _unknown_heads(flow, attention, len(fact(scores).shape))


def _unknown_heads(flow: Dataflow, attention: Attention, axes: int) -> Iterator[str]:
    if axes == 5 and find_windows(flow, attention) is None:
        yield "it is not known which of its axes are heads, and which are windows"
    elif axes != 5 and not has_heads_behind_batch(flow, attention):
        yield "its heads do not lie right behind the batch"


def _rows(probabilities: fx.Node) -> int:
    return math.prod(fact(probabilities).shape[:-1])


def _other(flow: Dataflow, product: fx.Node, operand: fx.Node) -> fx.Node:
    left, right = flow.products[product]
    return right if operand is left else left


def _is_known_product(
    flow: Dataflow, product: fx.Node, operand: fx.Node, is_known: Callable[[str, str, str], bool]
) -> bool:
    """Whether a product has its operands and its result in a known layout.

    One of matrices has, if keys or values are its right operand; of one by letters `is_known`
    is asked with those of the other operand, of keys or values, and of the result.
    """
    letters, is_right = letters_of(product), flow.products[product][1] is operand
    if letters is None:
        return is_right and kind(product) != "einsum"
    left, right, out = letters
    return is_known(left, right, out) if is_right else is_known(right, left, out)


def _are_scores(queries: str, keys: str, out: str) -> bool:
    if len(out) not in (4, 5) or not len(out) == len(queries) == len(keys):
        return False
    shared, query, key = out[:-2], out[-2], out[-1]
    return set(shared) <= set(queries) & set(keys) and query not in keys and key not in queries


def _is_context(probabilities: str, values: str, out: str) -> bool:
    if len(out) not in (4, 5) or not len(out) == len(probabilities) == len(values):
        return False
    shared, query, key = probabilities[:-2], probabilities[-2], probabilities[-1]
    return set(shared) <= set(values) & set(out) and query not in values and key in values and key not in out


def _keeps_columns(flow: Dataflow, start: fx.Node, end: fx.Node, may_add: bool = False) -> bool:
    """Whether the last axis of `start` arrives as that of `end`, if `may_add` with columns beside it."""
    found = behind(flow, end, may_pass=lambda node: node is not start)
    region = with_destinations(found.passed)
    if start in {end, *found.stops} and _keeps_order(start, end, region):
        return True
    probe = index_along(fact(start).shape, len(fact(start).shape) - 1)
    arrived = (
        () if probe is None else replay({start: probe}, [node for node in region if node is not start], end)
    )
    return bool(arrived) and all(_is_in_order(tensor, may_add) for tensor in arrived)


def _keeps_order(start: fx.Node, end: fx.Node, region: Iterable[fx.Node]) -> bool:
    """Whether the numbers of `start` arrive at `end` in the same order, in rows of the same length.

    A shape may change on the way, if the order of all numbers stays.
    """
    carried = {start: fact(start).shape}
    for node in region:
        shapes = [carried[source] for source in node.all_input_nodes if source in carried]
        if shapes:
            is_computed = not moves(node) and fact(node).shape in shapes
            is_reshaped = kind(node) in _RESHAPES and math.prod(fact(node).shape) == math.prod(shapes[0])
            if not is_computed and not is_reshaped:
                return False
            carried[node] = fact(node).shape
    return fact(end).shape[-1] == fact(start).shape[-1] and (end is start or end in carried)


def _is_in_order(arrived: Tensor, may_add: bool) -> bool:
    rows = arrived.flatten(0, -2)
    own = rows[:, rows[0] != ELSEWHERE] if may_add else rows
    return own.shape[1] > 0 and bool((own == torch.arange(own.shape[1])).all())
