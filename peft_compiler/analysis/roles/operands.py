"""The projections that feed the queries, keys and values of an attention."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from peft_compiler.analysis.module_graph import fact
from peft_compiler.analysis.ops import CONVOLUTIONS, argument, kind
from peft_compiler.analysis.roles.fused_rows import RowProbe, is_unknown
from peft_compiler.analysis.roles.linears import Dataflow, Linear
from peft_compiler.analysis.roles.nearest import Behind, behind
from peft_compiler.analysis.roles.residuals import Residual
from peft_compiler.site import Role, Rows


@dataclass(frozen=True, slots=True)
class Projected:
    """A projection that feeds an operand of attention.

    Attributes:
        linear: The projection.
        rows: Its rows that reach the operand; None for all, no row where that is unknown.
        way: The ops between it and the operand.
    """

    linear: Linear
    rows: Rows | None
    way: tuple[fx.Node, ...]


def search_operands(flow: Dataflow, operands: Mapping[Role, fx.Node]) -> Mapping[Role, Behind]:
    """Returns what lies behind each operand.

    A sum of several projections that queries and keys have in common tells neither of them
    apart, as the mean of both that Compressed Convolutional Attention (arXiv:2510.04476) adds
    to either: what is behind it counts only where nothing else feeds the two.
    """
    found = {role: behind(flow, operand) for role, operand in operands.items()}
    query, key = found[Role.QUERY], found[Role.KEY]
    in_common = query.passed & key.passed
    mixtures = {node for node in in_common if kind(node) == "add" and len(flow.active_inputs[node]) == 2}
    if mixtures:
        apart = {
            role: behind(flow, operands[role], may_pass=lambda node: node not in mixtures)
            for role in (Role.QUERY, Role.KEY)
        }
        if all(search.linears for search in apart.values()):
            return found | apart
    return found


def projections_of(
    flow: Dataflow,
    operand: fx.Node,
    search: Behind,
    residuals: Mapping[fx.Node, Residual],
    probe: RowProbe,
) -> tuple[Projected, ...]:
    """Returns what feeds an operand, nearest first; of a convolution by heads, what feeds that."""
    found: list[Projected] = []
    for node in search.linears:
        linear, way = flow.linears[node], search.way(node)
        rows = probe.rows(linear, operand, search)
        earlier = _before_convolution(flow, linear, rows, residuals, probe)
        if earlier:
            found += [Projected(each.linear, each.rows, (*each.way, node, *way)) for each in earlier]
        else:
            found.append(Projected(linear, rows, way))
    return tuple(found)


def _before_convolution(
    flow: Dataflow,
    convolution: Linear,
    rows: Rows | None,
    residuals: Mapping[fx.Node, Residual],
    probe: RowProbe,
) -> list[Projected]:
    """Returns the projections that a convolution of neighbours within each head is applied to.

    Its `rows` must be whole groups, for the channels of a group become those of the same group.
    Nothing where there are none: then the convolution is the projection itself.
    """
    width = _group_width(convolution)
    if width is None or is_unknown(rows) or not _is_whole(rows, width):
        return []
    search = behind(flow, convolution.data, may_pass=lambda node: node not in residuals)
    return [
        Projected(flow.linears[node], reached, search.way(node))
        for node in search.linears
        for reached in probe.rows_at(flow.linears[node], search, convolution, rows)
    ]


def _group_width(linear: Linear) -> int | None:
    """Returns how many channels a group has in a convolution in groups that gives as many as it takes."""
    groups = argument(linear.node, 6, "groups") if kind(linear.node) in CONVOLUTIONS else None
    channels_out, width = fact(linear.weight).shape[:2]
    is_square = isinstance(groups, int) and groups > 1 and channels_out == groups * width
    return width if is_square and "transpose" not in kind(linear.node) else None


def _is_whole(rows: Rows | None, width: int) -> bool:
    """Whether rows are whole groups of `width`."""
    return rows is None or all(start % width == 0 == length % width for start, length in rows.runs)
