"""An attention in several ops, as its local graph has it: scores, what becomes of them, softmax, context.

Its two contractions are products of matrices, or sums spelt out by letters (`einsum`). Whatever
the layout of an einsum's operands, it is seen here as (batch, heads, ...), as products have it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch.fx import Graph, Node

from peft_compiler.errors import LoweringError
from peft_compiler.letters import spelt_letters
from peft_compiler.site import Anchor, Core

_PRODUCTS = frozenset({"matmul", "bmm", "baddbmm"})
_CONTRACTIONS = _PRODUCTS | {"einsum"}

_LIKE = frozenset({"expand_as", "view_as", "reshape_as", "type_as", "to"})
"""Ops that read no more of a second tensor than its shape or its dtype."""


@dataclass(frozen=True, slots=True)
class Contraction:
    """A product of two activations.

    Attributes:
        node: The op.
        left: Its first operand, or the one that brings the queries, or the probabilities.
        right: Its second operand, or the one that brings the keys, or the values.
        letters: Those of left, right and result in an einsum, else None.
        factor: What the product is multiplied with.
    """

    node: Node
    left: Node
    right: Node
    letters: tuple[str, str, str] | None = None
    factor: float = 1.0


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
    scores: Contraction
    way_in: list[Node]
    context: Contraction

    def queries(self, graph: Graph) -> Node:
        """Returns the queries, (batch, heads, queries, key_width); in a product the first two may be one."""
        if self.scores.letters is None:
            return self.scores.left
        left, right, out = self.scores.letters
        return _ordered(graph, self.scores.left, left, out[:-1] + _summed(left, right, out))

    def keys(self, graph: Graph) -> Node:
        """Returns the keys as (..., keys, key_width)."""
        if self.scores.letters is None:
            return graph.call_method("transpose", (self.scores.right, -1, -2))
        left, right, out = self.scores.letters
        order = out[:-2] + out[-1] + _summed(left, right, out)
        return _ordered(graph, self.scores.right, right, order)

    def values(self, graph: Graph) -> Node:
        """Returns the values as (..., keys, value_width)."""
        if self.context.letters is None:
            return self.context.right
        left, right, _ = self.context.letters
        return _ordered(graph, self.context.right, right, left[:-2] + left[-1] + _brought(right, left))

    def by_heads(self, graph: Graph) -> Node:
        """Returns the context as (batch, heads, queries, value_width), or as a product has it."""
        if self.context.letters is None:
            return self.context.node
        left, right, out = self.context.letters
        return _ordered(graph, self.context.node, out, left[:-1] + _brought(right, left))

    def as_before(self, graph: Graph, by_heads: Node) -> Node:
        """Returns a context that lies as `by_heads` gives it, as the forward goes on with it."""
        if self.context.letters is None:
            return by_heads
        left, right, out = self.context.letters
        return _ordered(graph, by_heads, left[:-1] + _brought(right, left), out)


def spelt_out(graph: Graph, softmax: Node, core: Core) -> SpeltOut:
    """Returns the attention around a softmax, or around what replaced it.

    Raises:
        LoweringError: If it has a form that is not known.
    """
    if "spelt_out" not in softmax.meta:
        _check_axis(softmax)
        scores = _contraction(graph, softmax, core.scores, lambda node: node.all_input_nodes)
        if scores.letters and scores.letters[2][-1] in scores.letters[0]:
            scores = _swapped(scores)  # the last axis of the scores is that of the keys
        context = _contraction(graph, softmax, core.context, lambda node: node.users)
        if context.right in {softmax, *_reach(softmax, _carrying)}:
            context = _swapped(context)
        logits: Any = softmax.args[0]
        way_in = between(graph, scores.node, softmax)
        softmax.meta["spelt_out"] = SpeltOut(logits, scores, way_in, context)
    return softmax.meta["spelt_out"]


def op_name(node: Node) -> str:
    """Returns the name of the op that `node` calls, without underscores around it."""
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return target.strip("_") if node.op in ("call_function", "call_method") else node.op


def between(graph: Graph, first: Node, last: Node) -> list[Node]:
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


def _check_axis(softmax: Node) -> None:
    axis = softmax.kwargs.get("dim", softmax.args[1] if len(softmax.args) > 1 else None)
    if axis not in (-1, len(softmax.meta["shape"]) - 1):
        raise LoweringError(
            f"an attention normalises axis {axis} of its scores; expected the last one, the keys"
        )


def _contraction(
    graph: Graph, softmax: Node, anchor: Anchor | None, step: Callable[[Node], Iterable[Node]]
) -> Contraction:
    """Returns the contraction that is the op of `anchor`, or else the one that is nearest to the softmax."""
    hits = [node for node in graph.nodes if anchor is not None and node.meta.get("anchor") == anchor]
    node = hits[0] if hits else _nearest(softmax, step)
    if op_name(node) == "einsum":
        equation, *operands = node.args
        left, right = operands if len(operands) == 2 else operands[0]  # pyright: ignore
        letters = spelt_letters(str(equation), len(left.meta["shape"]))  # pyright: ignore
        return Contraction(node, left, right, letters)  # pyright: ignore
    if op_name(node) == "baddbmm":
        # torch.baddbmm(input, batch1, batch2, beta, alpha), or the method of `input`
        batches = [
            node.kwargs.get(name, node.args[place] if len(node.args) > place else None)
            for place, name in ((1, "batch1"), (2, "batch2"))
        ]
        factor: Any = node.kwargs.get("alpha", 1.0)
        return Contraction(node, *batches, factor=factor)  # pyright: ignore[reportArgumentType]
    left, right = node.args[:2]
    return Contraction(node, left, right)  # pyright: ignore[reportArgumentType]


def _swapped(contraction: Contraction) -> Contraction:
    """Returns the same contraction with its operands in the order that is expected of an attention.

    Raises:
        LoweringError: If it is a product, where the order makes another layout of the result.
    """
    node, letters = contraction.node, contraction.letters
    if letters is None:
        raise LoweringError(
            f"an attention multiplies by its probabilities from the right, by {op_name(node)}"
        )
    return Contraction(node, contraction.right, contraction.left, (letters[1], letters[0], letters[2]))


def _nearest(softmax: Node, step: Callable[[Node], Iterable[Node]]) -> Node:
    """Returns the contraction of two activations that is nearest to `softmax`, breadth first."""
    seen, layer = {softmax}, [softmax]
    while layer:
        layer = list(
            dict.fromkeys(
                near for node in layer for near in step(node) if near not in seen and "shape" in near.meta
            )
        )
        hits = [node for node in layer if _multiplies_activations(node)]
        if hits:
            return hits[0]
        seen.update(layer)
    raise LoweringError(
        f"a softmax is not between two contractions of activations ({', '.join(sorted(_CONTRACTIONS))})"
    )


def _multiplies_activations(node: Node) -> bool:
    operands = [operand for operand in node.all_input_nodes if "shape" in operand.meta]
    is_of_weights = any(operand.op == "get_attr" for operand in operands)
    return op_name(node) in _CONTRACTIONS and len(operands) > 1 and not is_of_weights


def _summed(left: str, right: str, out: str) -> str:
    """Returns the letters that an einsum sums over."""
    return "".join(letter for letter in left if letter in right and letter not in out)


def _brought(right: str, left: str) -> str:
    """Returns the letters that the right operand alone has."""
    return "".join(letter for letter in right if letter not in left)


def _ordered(graph: Graph, value: Node, letters: str, wanted: str) -> Node:
    """Returns `value`, whose axes have `letters`, with its axes in the order of `wanted`."""
    if sorted(letters) != sorted(wanted):
        raise LoweringError(
            f"an attention has an operand with axes {letters}; expected {wanted} in any order"
        )
    if letters == wanted:
        return value
    return graph.call_method("permute", (value, *(letters.index(letter) for letter in wanted)))
