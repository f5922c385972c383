"""Where the output of attention, feed-forward and mixers is added to something for the first time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from peft_compiler.analysis.module_graph import fact
from peft_compiler.analysis.ops import kind
from peft_compiler.analysis.roles.attention import Attention
from peft_compiler.analysis.roles.feed_forward import Branch
from peft_compiler.analysis.roles.linears import Dataflow
from peft_compiler.analysis.roles.nearest import behind
from peft_compiler.analysis.roles.residuals import Residual, active_operands, source_of
from peft_compiler.site import Role


@dataclass(frozen=True, slots=True)
class Joining:
    """A sub-layer's output on its way into an add.

    Attributes:
        add: The op.
        value: The operand that is the output.
        role: Of which kind of sub-layer.
        cross: Whether of cross-attention.
    """

    add: fx.Node
    value: fx.Node
    role: Role
    cross: bool


def find_joinings(
    flow: Dataflow,
    residuals: Mapping[fx.Node, Residual],
    attentions: Sequence[Attention],
    branches: Sequence[Branch],
) -> Iterator[Joining]:
    """Yields one place for each sub-layer that joins the stream, in order of execution.

    Sub-layers that are summed first, such as attention and feed-forward in parallel, join
    where each is first added; sums of the same kind, such as experts, join as one.
    """
    ends: dict[fx.Node, tuple[Role, bool]] = {branch.down: (branch.role, False) for branch in branches}
    for attention in attentions:
        end = attention.output.node if attention.output else attention.meeting.context
        ends[end] = (Role.ATTENTION, attention.cross)
    for residual in residuals.values():
        yield from _joinings(flow, residuals, residual.floor, residual.add, residual.branch, ends)


def _joinings(
    flow: Dataflow,
    residuals: Mapping[fx.Node, Residual],
    floor: int,
    add: fx.Node,
    value: fx.Node,
    ends: Mapping[fx.Node, tuple[Role, bool]],
) -> list[Joining]:
    source = source_of(flow, value)
    terms = active_operands(flow, source)
    is_sum = kind(source) == "add" and len(terms) == 2 and source not in residuals
    if is_sum and fact(source).order > floor:
        parts = [
            joining for term in terms for joining in _joinings(flow, residuals, floor, source, term, ends)
        ]
        kinds = {(part.role, part.cross) for part in parts}
        return [Joining(add, value, *kinds.pop())] if len(kinds) == 1 else parts
    found = behind(flow, value, floor)
    reached = [
        ends[node]
        for node in (*found.linears, *found.stops)
        if node in ends and not _is_channel_first(flow, node, value)
    ]
    return [Joining(add, value, *reached[0])] if reached else []


def _is_channel_first(flow: Dataflow, end: fx.Node, value: fx.Node) -> bool:
    """Whether the features of a value are not its last axis, as after a convolution."""
    linear = flow.linears.get(end)
    shape = fact(end).shape
    return linear is not None and linear.feature_axis != len(shape) - 1 and fact(value).shape == shape
