"""Which contractions apply a weight to an activation, and which multiply two activations."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import fx

from peft_compiler.analysis.module_graph import ModuleGraph, fact
from peft_compiler.analysis.ops import CONTRACTIONS, CONVOLUTIONS, argument, kind, tensors
from peft_compiler.analysis.roles.taint import Taint, find_taint
from peft_compiler.letters import spelt_letters

_WEIGHT_IS_SECOND = CONVOLUTIONS | {"linear", "addmm"}


@dataclass(frozen=True, slots=True)
class Linear:
    """An op that applies a weight to an activation.

    Attributes:
        node: The op.
        data: What it is applied to.
        weight: The weight as the op sees it: a parameter, or a part or a view of one.
        weight_first: Whether the weight is the left operand of a product.
        bias: The bias as the op sees it, or None.
    """

    node: fx.Node
    data: fx.Node
    weight: fx.Node
    weight_first: bool
    bias: fx.Node | None

    @property
    def feature_axis(self) -> int:
        """Which axis of the output holds the features."""
        dimensions = len(fact(self.node).shape)
        if kind(self.node) in CONVOLUTIONS:
            return dimensions - (len(fact(self.weight).shape) - 1)
        if kind(self.node) in _WEIGHT_IS_SECOND or not self.weight_first:
            return dimensions - 1
        return dimensions - 2

    @property
    def letters(self) -> tuple[str, str, str] | None:
        """The letters of data, weight and output where the op is an einsum, else None."""
        letters = letters_of(self.node)
        if letters is None or "." in str(self.node.args[0]):
            return None
        left, right, out = letters
        return (right, left, out) if self.weight_first else (left, right, out)

    @property
    def axes(self) -> tuple[int, int]:
        """How many axes of the data, and of the output, are the features."""
        if self.letters is None:
            return 1, 1
        data, weight, out = self.letters
        summed = sum(letter in data and letter not in out for letter in weight)
        new = sum(letter in out and letter not in data for letter in weight)
        return max(summed, 1), max(new, 1)

    @property
    def width_out(self) -> int:
        """How many features the output has."""
        if self.axes[1] > 1:
            return math.prod(fact(self.node).shape[-self.axes[1] :])
        return fact(self.node).shape[self.feature_axis]


@dataclass(frozen=True)
class Dataflow:
    """A graph, and what is known of its values before any role is.

    Attributes:
        graph: The ops.
        taint: What each value derives from.
        linears: The ops that apply a weight to an activation.
        products: The two operands of each contraction of activations.
    """

    graph: ModuleGraph
    taint: Taint
    linears: Mapping[fx.Node, Linear]
    products: Mapping[fx.Node, tuple[fx.Node, fx.Node]]

    @cached_property
    def uses(self) -> Mapping[fx.Node, tuple[Linear, ...]]:
        """The linears whose weight derives from each parameter."""
        found: dict[fx.Node, list[Linear]] = {}
        for linear in self.linears.values():
            for base in self.taint.bases[linear.weight]:
                found.setdefault(base, []).append(linear)
        return {base: tuple(linears) for base, linears in found.items()}

    @cached_property
    def active_inputs(self) -> Mapping[fx.Node, tuple[fx.Node, ...]]:
        """The activations that each activation was computed from."""
        active = self.taint.activations
        return {node: tuple(source for source in node.all_input_nodes if source in active) for node in active}

    @cached_property
    def active_users(self) -> Mapping[fx.Node, tuple[fx.Node, ...]]:
        """The activations that were computed from each activation."""
        active = self.taint.activations
        return {node: tuple(user for user in node.users if user in active) for node in active}


def find_dataflow(graph: ModuleGraph) -> Dataflow:
    """Returns the contractions of a graph, told apart by what they contract."""
    taint = find_taint(graph)
    linears: dict[fx.Node, Linear] = {}
    products: dict[fx.Node, tuple[fx.Node, fx.Node]] = {}
    for node in graph.nodes:
        if node not in taint.activations or kind(node) not in CONTRACTIONS:
            continue
        operands = _operands(node)
        if len(operands) != 2:
            continue
        left, right = operands
        if left in taint.activations and right in taint.activations:
            products[node] = (left, right)
        elif linear := _as_linear(node, left, right, taint):
            linears[node] = linear
    return Dataflow(graph, taint, linears, products)


def letters_of(node: fx.Node) -> tuple[str, str, str] | None:
    """Returns the letters of both operands and of the result of an einsum; None for anything else."""
    equation = node.args[0] if kind(node) == "einsum" else None
    if not isinstance(equation, str) or "->" not in equation or equation.count(",") != 1:
        return None
    return spelt_letters(equation, len(fact(tensors(node)[0]).shape))


def _operands(node: fx.Node) -> list[fx.Node]:
    """Returns the two operands that are multiplied, left and right as in mathematics."""
    name = kind(node)
    if name in CONVOLUTIONS or name == "linear":
        found = [argument(node, 0, "input"), argument(node, 1, "weight")]
    elif name in ("addmm", "baddbmm", "addbmm"):
        found = [argument(node, 1, "mat1", "batch1"), argument(node, 2, "mat2", "batch2")]
    elif name == "einsum":
        found = tensors(node)
    else:
        found = tensors(node)[:2]
    found = [operand for operand in found if isinstance(operand, fx.Node)]
    return found[::-1] if name == "rmatmul" else found


def _as_linear(node: fx.Node, left: fx.Node, right: fx.Node, taint: Taint) -> Linear | None:
    if left in taint.bases and right in taint.bases:
        # A learned input: the weight is where the op has it, else the operand that is a parameter itself.
        weight_first = kind(node) not in _WEIGHT_IS_SECOND and len(left.args) == 0 and len(right.args) != 0
    else:
        weight_first = left in taint.bases
    data, weight = (right, left) if weight_first else (left, right)
    if weight not in taint.bases or len(fact(weight).shape) < 2 or is_depthwise(node, weight):
        return None
    return Linear(node, data, weight, weight_first, _bias(node))


def is_depthwise(node: fx.Node, weight: fx.Node) -> bool:
    """Whether `node` is a convolution that makes of each channel channels of its own."""
    groups = argument(node, 6, "groups") if kind(node) in CONVOLUTIONS else None
    return isinstance(groups, int) and groups > 1 and fact(weight).shape[1] == 1


def _bias(node: fx.Node) -> fx.Node | None:
    if kind(node) in CONVOLUTIONS or kind(node) == "linear":
        found = argument(node, 2, "bias")
    else:
        found = argument(node, 0, "input") if kind(node) in ("addmm", "baddbmm", "addbmm") else None
    return found if isinstance(found, fx.Node) else None
