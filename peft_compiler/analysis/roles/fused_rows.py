"""Which rows of a projection reach a value, and how a parameter is laid out where it is used."""

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from peft_compiler.analysis.module_graph import fact
from peft_compiler.analysis.ops import CASTS, CONVOLUTIONS, PARTS, SELECTIONS, SHAPES, kind, tensors
from peft_compiler.analysis.roles.linears import Dataflow, Linear
from peft_compiler.analysis.roles.nearest import Behind
from peft_compiler.analysis.roles.replay import (
    ELSEWHERE,
    index_along,
    replay,
    varies_along,
    with_destinations,
)
from peft_compiler.site import Rows

_LAYOUT_OPS = SHAPES | CASTS | SELECTIONS
# By number of axes, where the last but one holds the features out, and where the last one does.
_FORMS = {2: ("linear", "transposed"), 3: ("experts", "transposed_experts")}


@dataclass(frozen=True, slots=True)
class Use:
    """How an op uses one axis of a parameter.

    Attributes:
        is_output: Whether the axis becomes the features of the op's output.
        rows: The entries along the axis that the op uses; None for all, none where unknown.
    """

    is_output: bool
    rows: Rows | None


class RowProbe:
    """Answers which rows of a linear reach a value, or are used at all. Equal layers are probed once."""

    def __init__(self) -> None:
        self._rows: dict[Hashable, Rows | None] = {}
        self._uses: dict[Hashable, Use] = {}

    def rows(self, linear: Linear, target: fx.Node, found: Behind) -> Rows | None:
        """Returns the rows of `linear` that reach `target`: None for all, no row where that is unknown.

        Args:
            linear: One of the linears in `found`.
            target: The value that `found` lies behind.
            found: The search that found the linear.
        """
        shape = fact(linear.node).shape
        axis = linear.feature_axis
        if not any(kind(node) in PARTS for node in found.passed):
            return None
        if linear.axes[1] > 1:
            return Rows((), shape[axis])  # features in several axes have no one index to follow
        region = with_destinations(found.passed)
        key = (shape, axis, _signature(linear.node, target, region))
        if key not in self._rows:
            self._rows[key] = _probe(linear.node, axis, target, region)
        return self._rows[key]

    def rows_at(
        self, linear: Linear, found: Behind, convolution: Linear, channels: Rows | None
    ) -> tuple[Rows | None, ...]:
        """Returns the rows of `linear` that reach some channels of what a convolution is applied to.

        Args:
            linear: One of the linears in `found`.
            found: What lies behind the data of the convolution.
            convolution: Of that search.
            channels: Which of its channels; None for all.

        Returns:
            The rows, as from `rows`; nothing where none of them reaches these channels.
        """
        shape, axis = fact(linear.node).shape, linear.feature_axis
        probe = index_along(shape, axis) if linear.axes[1] == 1 else None
        region = with_destinations(found.passed)
        arrived = () if probe is None else replay({linear.node: probe}, region, convolution.data)
        if channels is not None:
            indices = torch.tensor(channels.indices)
            arrived = tuple(each.index_select(convolution.feature_axis, indices) for each in arrived)
            if arrived and all(bool((each == ELSEWHERE).all()) for each in arrived):
                return ()
        return (_rows_of(arrived, shape[axis]),)

    def use(self, linear: Linear, parameter: fx.Node, axis: int) -> Use:
        """Returns how `linear` uses an axis of a parameter, counted from the end."""
        region = _between(parameter, linear.weight)
        out_axis = _out_axis(linear)
        shape = fact(parameter).shape
        key = (shape, axis, out_axis, _signature(parameter, linear.weight, region))
        if key not in self._uses:
            arrived = _follow(parameter, len(shape) + axis, linear.weight, region)
            is_output = len(arrived) == 1 and out_axis is not None and varies_along(arrived[0], out_axis)
            self._uses[key] = Use(is_output, _rows_of(arrived, shape[axis]))
        return self._uses[key]


def is_unknown(rows: Rows | None) -> bool:
    """Whether it could not be told which rows they are."""
    return rows is not None and not rows.runs


def _probe(node: fx.Node, axis: int, target: fx.Node, region: list[fx.Node]) -> Rows | None:
    probe = index_along(fact(node).shape, axis)
    arrived = () if probe is None else replay({node: probe}, region, target)
    return _rows_of(arrived, fact(node).shape[axis])


def _rows_of(arrived: tuple[Tensor, ...], total: int) -> Rows | None:
    """Returns the rows that arrived; None for all of them, no row where nothing did."""
    # Elements from elsewhere are marked by -1, and fall into one more place at the end.
    found = torch.zeros(total + 1, dtype=torch.int8)
    for tensor in arrived:
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        found[real.flatten().long()] = 1
    found[total] = 0
    steps = found.diff(prepend=found.new_zeros(1))
    starts, ends = ((steps == step).nonzero().flatten().tolist() for step in (1, -1))
    rows = Rows(tuple((start, end - start) for start, end in zip(starts, ends, strict=True)), total)
    return None if len(rows) == total else rows


def _signature(node: fx.Node, target: fx.Node, region: list[fx.Node]) -> Hashable:
    """Returns what the answer depends on, the same for every layer that is built alike."""
    places = {member: place for place, member in enumerate([node, *region])}

    def described(value: Any) -> Hashable:
        if isinstance(value, fx.Node):
            return (
                ("node", places[value])
                if value in places
                else ("other", fact(value).shape, fact(value).dtype)
            )
        if isinstance(value, (tuple, list)):
            return tuple(described(item) for item in value)
        return repr(value)

    ops = tuple(
        (fact(member).op, described(member.args), described(tuple(member.kwargs.items())))
        for member in region
    )
    return places[target], ops


@dataclass(frozen=True, slots=True)
class Layout:
    """How a linear uses a parameter.

    Attributes:
        parameter: The parameter.
        form: As in `Projection.form`.
        width_in: Features in.
        width_out: Features out, of all rows.
        rows: The rows of the parameter that this op uses; None for all.
        axes: As in `Projection.axes`.
    """

    parameter: fx.Node
    form: str
    width_in: int
    width_out: int
    rows: Rows | None
    axes: tuple[int, int] = (1, 1)


def find_layout(flow: Dataflow, linear: Linear, probe: RowProbe) -> Layout | None:
    """Returns how `linear` uses its parameter; None where its weight is computed from several, or unclear."""
    matrices = [base for base in flow.taint.bases[linear.weight] if len(fact(base).shape) > 1]
    if len(matrices) != 1:
        return None
    parameter = matrices[0]
    region = _between(parameter, linear.weight)
    if any(kind(node) not in _LAYOUT_OPS for node in region):
        return None
    if kind(linear.node) in CONVOLUTIONS:
        return _convolution(linear, parameter) if not region else None
    if max(linear.axes) > 1:
        return _by_heads(linear, parameter, region)
    shape = fact(parameter).shape
    out_axis = _out_axis(linear)
    if len(shape) not in _FORMS or out_axis is None:
        return None
    for axis, form in zip((-2, -1), _FORMS[len(shape)], strict=True):
        use = probe.use(linear, parameter, axis)
        if use.is_output:
            # Part of the features in: the op uses one of several matrices that are stored as one.
            if fact(linear.weight).shape[_other(out_axis, linear)] != shape[-3 - axis]:
                return None
            if use.rows is not None and not _covers_all_rows(flow, parameter, axis, probe):
                return None
            return Layout(parameter, form, shape[-3 - axis], shape[axis], use.rows)
    return None


def _covers_all_rows(flow: Dataflow, parameter: fx.Node, axis: int, probe: RowProbe) -> bool:
    """Whether every row is in a slice that is used; if not, others may be used at other times."""
    total = fact(parameter).shape[axis]
    uses = [probe.use(linear, parameter, axis) for linear in flow.uses[parameter]]
    found = {row for use in uses if use.rows is not None for row in use.rows.indices}
    return len(found) == total or any(use.rows is None for use in uses)


def _other(out_axis: int, linear: Linear) -> int:
    dimensions = len(fact(linear.weight).shape)
    return dimensions - 2 if out_axis == dimensions - 1 else dimensions - 1


def _convolution(linear: Linear, parameter: fx.Node) -> Layout | None:
    if "transpose" in kind(linear.node):
        return None
    channel_axis = linear.feature_axis
    channels = fact(linear.data).shape[channel_axis]
    return Layout(parameter, "conv", channels, fact(parameter).shape[0], None)


def _between(parameter: fx.Node, weight: fx.Node) -> list[fx.Node]:
    region: dict[fx.Node, None] = {}
    queue = [weight]
    while queue:
        node = queue.pop()
        if node is not parameter and node not in region:
            region[node] = None
            queue.extend(source for source in tensors(node)[:1] if node.op == "call_function")
    return list(region)


def _follow(parameter: fx.Node, axis: int, weight: fx.Node, region: list[fx.Node]) -> tuple[Tensor, ...]:
    shape = fact(parameter).shape
    # Two slices along every other axis say as much, and are cheap, unless an op spells the shape out.
    narrow = tuple(size if place == axis else min(size, 2) for place, size in enumerate(shape))
    for size in (narrow, shape):
        probe = index_along(size, axis)
        arrived = () if probe is None else replay({parameter: probe}, region, weight)
        if arrived:
            return arrived
    return ()


def _out_axis(linear: Linear) -> int | None:
    """Returns which axis of the weight, as the op sees it, becomes the features of its output."""
    dimensions = len(fact(linear.weight).shape)
    if kind(linear.node) == "linear":
        return 0
    if kind(linear.node) == "einsum":
        return _einsum_out_axis(linear)
    return dimensions - 2 if linear.weight_first else dimensions - 1


def _by_heads(linear: Linear, parameter: fx.Node, region: list[fx.Node]) -> Layout | None:
    """Returns how an einsum uses a parameter with several axes of features: all of it, matched in order."""
    assert linear.letters is not None
    data, weight, out = linear.letters
    summed = "".join(letter for letter in weight if letter not in out)
    new = "".join(letter for letter in weight if letter not in data)
    in_order = data.endswith(summed) and out.endswith(new) and all(kind(node) in CASTS for node in region)
    form = {new + summed: "linear", summed + new: "transposed"}.get(weight)
    if form is None or not in_order:
        return None
    sizes = dict(zip(weight, fact(parameter).shape, strict=True))
    width_in, width_out = (math.prod(sizes[letter] for letter in letters) for letters in (summed, new))
    return Layout(parameter, form, width_in, width_out, None, (len(summed), len(new)))


def _einsum_out_axis(linear: Linear) -> int | None:
    if linear.letters is None:
        return None
    data, weight, out = linear.letters
    new = [axis for axis, letter in enumerate(weight) if letter in out and letter not in data]
    summed = "".join(letter for letter in weight if letter in data and letter not in out)
    is_last = len(new) == 1 and out.endswith(weight[new[0]]) and data.endswith(summed)
    return new[0] if is_last else None
