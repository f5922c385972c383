"""How many heads an attention has, and how wide they are."""

from dataclasses import dataclass

from torch import fx

from peft_compiler.analysis.module_graph import fact
from peft_compiler.analysis.roles.attention import Attention
from peft_compiler.analysis.roles.fused_rows import is_unknown
from peft_compiler.analysis.roles.linears import Dataflow, letters_of
from peft_compiler.site import Role


@dataclass(frozen=True, slots=True)
class HeadWidths:
    """As in `Core`."""

    heads: int
    key_heads: int
    key_width: int
    value_width: int


def find_head_widths(flow: Dataflow, attention: Attention) -> HeadWidths:
    """Returns the heads of an attention, counted by the rows of its projections where they are known."""
    meeting = attention.meeting
    if meeting.scores is None:
        key_width, value_width = fact(meeting.query).shape[-1], fact(meeting.value).shape[-1]
    else:
        key_width = _contracted(meeting.scores, flow.products[meeting.scores])
        value_width = _kept(meeting.context, flow.products[meeting.context], meeting.value)
    heads = _counted(attention, Role.QUERY, key_width) or _by_shape(meeting.query)
    key_heads = _counted(attention, Role.KEY, key_width) or heads
    return HeadWidths(heads, key_heads, key_width, value_width)


def _counted(attention: Attention, role: Role, width: int) -> int | None:
    projections = attention.projections[role]
    # One projection may be applied twice: to states of one's own and to those of an encoder.
    applied = {(projected.linear.weight, projected.rows) for projected in projections}
    if len(applied) != 1 or is_unknown(projections[0].rows):
        return None
    linear, rows = projections[0].linear, projections[0].rows
    features = linear.width_out if rows is None else len(rows)
    return features // width if features % width == 0 else None


def _by_shape(query: fx.Node) -> int:
    shape = fact(query).shape
    return shape[-3] if len(shape) > 3 else 1


def _contracted(product: fx.Node, pair: tuple[fx.Node, fx.Node]) -> int:
    """Returns the length of the axis that a product sums over."""
    letters = letters_of(product)
    if letters is None:
        return fact(pair[0]).shape[-1]
    left, right, out = letters
    letter = next(letter for letter in left if letter in right and letter not in out)
    return fact(pair[0]).shape[left.index(letter)]


def _kept(product: fx.Node, pair: tuple[fx.Node, fx.Node], operand: fx.Node) -> int:
    """Returns the length of the axis that an operand of a product brings into its result."""
    letters = letters_of(product)
    is_right = operand is pair[1]
    if letters is None:
        return fact(operand).shape[-1 if is_right else -2]
    left, right, out = letters
    own, other = (right, left) if is_right else (left, right)
    letter = next(letter for letter in own if letter in out and letter not in other)
    return fact(operand).shape[own.index(letter)]
