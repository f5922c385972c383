"""Where exactly an attention stands: the module whose graph holds all its ops, and which ops those are."""

from dataclasses import replace

from torch import fx

from peft_compiler.analysis.module_graph import fact, parent
from peft_compiler.analysis.places import Matrix, matrix_of_linear
from peft_compiler.analysis.roles.attention import Attention, has_learned_bias
from peft_compiler.analysis.roles.fused_rows import RowProbe, is_unknown
from peft_compiler.analysis.roles.head_widths import HeadWidths, find_head_widths
from peft_compiler.analysis.roles.linears import Dataflow
from peft_compiler.analysis.roles.obstacles import find_obstacle
from peft_compiler.analysis.roles.windows import find_windows
from peft_compiler.site import Anchor, Core, Projector, Role


def container_of(attention: Attention) -> str:
    """Returns the path of the innermost module in or below whose forward all ops of an attention stand."""
    path, *others = {fact(node).module for node in _ops(attention)}
    while not all(_is_at_or_below(other, path) for other in others):
        path = parent(path)
    return path


def place_of_core(flow: Dataflow, attention: Attention, probe: RowProbe) -> Core:
    """Returns the place of an attention in the forward of `container_of` it."""
    meeting = attention.meeting
    path, widths = container_of(attention), find_head_widths(flow, attention)
    keys = _projector(flow, attention, Role.KEY, probe, path, widths.key_heads * widths.key_width)
    values = _projector(flow, attention, Role.VALUE, probe, path, widths.key_heads * widths.value_width)
    of_scores = [_anchor(node, path) for node in _ops(attention)[1:]]
    return Core(
        anchor=_anchor(meeting.core, path),
        heads=widths.heads,
        key_heads=widths.key_heads,
        key_width=widths.key_width,
        value_width=widths.value_width,
        learned_bias=has_learned_bias(flow, meeting.core),
        keys=keys,
        values=values,
        scores=of_scores[0] if of_scores else None,
        context=of_scores[1] if of_scores else None,
        windows=find_windows(flow, attention),
        obstacle=_called_again(flow, attention, path)
        or _unlike_heads(widths)
        or find_obstacle(flow, attention),
    )


def matrices_of(flow: Dataflow, attention: Attention, role: Role, probe: RowProbe) -> list[Matrix]:
    """Returns where the weights stand that give one operand of an attention, as far as that is known."""
    found = (matrix_of_linear(flow, each.linear, probe) for each in attention.projections.get(role, ()))
    return [matrix for matrix in found if matrix is not None]


def _ops(attention: Attention) -> list[fx.Node]:
    meeting = attention.meeting
    return [meeting.core] if meeting.scores is None else [meeting.core, meeting.scores, meeting.context]


def _is_at_or_below(path: str, other: str) -> bool:
    return path == other or not other or path.startswith(f"{other}.")


def _anchor(node: fx.Node, path: str) -> Anchor:
    anchor = fact(node).anchor
    assert anchor is not None, "only inputs and parameters have no anchor"
    below = fact(node).module.removeprefix(path).removeprefix(".")
    return replace(anchor, within=below)


def _unlike_heads(widths: HeadWidths) -> str | None:
    """Returns why queries and keys do not go together, as where queries are chosen by an index."""
    if widths.heads % widths.key_heads == 0:
        return None
    return f"its {widths.heads} heads of queries cannot share {widths.key_heads} heads of keys"


def _called_again(flow: Dataflow, attention: Attention, path: str) -> str | None:
    """Returns why a module below `path` that holds an op of an attention is not told by its calls."""
    paths = (path, *(fact(node).module for node in _ops(attention)))
    calls = {each: len(flow.graph.calls.get(each, (None,))) for each in paths}
    again = next((each for each, count in calls.items() if count > calls[path]), None)
    return f"its ops stand in {again}, which is called again for others" if again else None


def _projector(
    flow: Dataflow, attention: Attention, role: Role, probe: RowProbe, path: str, width: int
) -> Projector | None:
    """Returns what projects keys or values, where one module below the attention's does that alone."""
    projections = attention.projections.get(role, ())
    matrices = matrices_of(flow, attention, role, probe)
    if len(projections) != 1 or len(matrices) != 1 or is_unknown(projections[0].rows):
        return None
    (matrix,) = matrices
    place = matrix.place_of(projections[0].rows)
    found = matrix.width_out if place.rows is None else len(place.rows)
    stands_alone = place.anchor is None and place.axes == (1, 1) and place.form != "conv"
    inner = f"{path}." if path else ""
    if not stands_alone or found != width or matrix.path == path or not matrix.path.startswith(inner):
        return None
    return Projector(matrix.path.removeprefix(inner), place.rows)
