"""Where the output of attention, feed-forward and mixers is added to something for the first time."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from peft_compiler.analysis.module_graph import fact
from peft_compiler.analysis.ops import kind
from peft_compiler.analysis.roles.attention import Attention
from peft_compiler.analysis.roles.feed_forward import Branch
from peft_compiler.analysis.roles.linears import Dataflow
from peft_compiler.analysis.roles.nearest import behind, data_of
from peft_compiler.analysis.roles.residuals import Residual, active_operands, source_of
from peft_compiler.analysis.roles.sources import find_norm_behind, find_stream
from peft_compiler.site import Role, Source


@dataclass(frozen=True, slots=True)
class Joining:
    """A sub-layer's output on its way into an add.

    Attributes:
        add: The op; where the output is spread over several streams first, the op that begins to.
        value: The operand that is the output.
        role: Of which kind of sub-layer.
        cross: Whether of cross-attention.
        source: Where the stream that the sub-layer left can be had beside the add, or None.
        norm: Path of the norm that the sum goes into, within the module that adds, or None.
        end: The op of the sub-layer that gave the output, its last projection.
    """

    add: fx.Node
    value: fx.Node
    role: Role
    cross: bool
    source: Source | None
    norm: str | None
    end: fx.Node


@dataclass(frozen=True, slots=True)
class _End:
    """The last projection of a sub-layer, and which kind that is of."""

    node: fx.Node
    role: Role
    cross: bool


@dataclass(frozen=True, slots=True)
class _Search:
    """What is looked for, and in what."""

    flow: Dataflow
    residuals: Mapping[fx.Node, Residual]
    norms: Collection[str]
    ends: Mapping[fx.Node, _End]


def find_joinings(
    flow: Dataflow,
    residuals: Mapping[fx.Node, Residual],
    attentions: Sequence[Attention],
    branches: Sequence[Branch],
    norms: Collection[str],
) -> Iterator[Joining]:
    """Yields one place for each sub-layer that joins the stream, in order of execution.

    Sub-layers that are summed first, such as attention and feed-forward in parallel, join
    where each is first added; sums of the same kind, such as experts, join as one.
    """
    ends = {branch.end: _End(branch.end, branch.role, False) for branch in branches}
    for attention in attentions:
        for end in [output.node for output in attention.outputs] or [attention.meeting.context]:
            ends[end] = _End(end, Role.ATTENTION, attention.cross)
    search = _Search(flow, residuals, norms, ends)
    for residual in residuals.values():
        yield from _joinings(search, residual, residual.add, residual.branch)


def _joinings(search: _Search, residual: Residual, add: fx.Node, value: fx.Node) -> list[Joining]:
    flow = search.flow
    source = source_of(flow, value)
    terms = active_operands(flow, source)
    is_sum = kind(source) == "add" and len(terms) == 2 and source not in search.residuals
    if is_sum and fact(source).order > residual.floor:
        parts = [joining for term in terms for joining in _joinings(search, residual, source, term)]
        kinds = {(part.role, part.cross) for part in parts}
        if len(kinds) != 1:
            return parts
    end = _first_end(search, residual.floor, value)
    if end is None:
        return []
    norm = find_norm_behind(flow, add, search.norms)
    op, output = _before_streams(flow, add, value)
    stream = find_stream(flow, op, residual.origin, output)
    return [Joining(op, output, end.role, end.cross, stream, norm, end.node)]


def _before_streams(flow: Dataflow, add: fx.Node, value: fx.Node) -> tuple[fx.Node, fx.Node]:
    """Returns the op that takes a sub-layer's output, before weights spread it over several streams."""
    factors = data_of(flow, value) if kind(value) == "mul" else ()
    if len(factors) == 1 and kind(factors[0]) == "unsqueeze":
        outputs = flow.active_inputs[factors[0]]
        if len(outputs) == 1 and fact(outputs[0]).shape[-1] == fact(value).shape[-1]:
            return factors[0], outputs[0]
    return add, value


def _first_end(search: _Search, floor: int, value: fx.Node) -> _End | None:
    # What an earlier sub-layer gave to the stream is no output of this one.
    found = behind(search.flow, value, floor, lambda node: node not in search.residuals)
    ends = (node for node in (*found.linears, *found.stops) if node in search.ends)
    return next((search.ends[end] for end in ends if not _is_channel_first(search.flow, end, value)), None)


def _is_channel_first(flow: Dataflow, end: fx.Node, value: fx.Node) -> bool:
    """Whether the features of a value are not its last axis, as after a convolution."""
    linear = flow.linears.get(end)
    shape = fact(end).shape
    return linear is not None and linear.feature_axis != len(shape) - 1 and fact(value).shape == shape
