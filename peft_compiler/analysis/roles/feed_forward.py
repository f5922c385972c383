"""The branches that are no attention: feed-forward layers, plain, gated or of experts, and mixers."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from torch import fx

from peft_compiler.analysis.module_graph import fact
from peft_compiler.analysis.ops import CONVOLUTIONS, MIXES, NONLINEARITIES, kind
from peft_compiler.analysis.roles.fused_rows import RowProbe
from peft_compiler.analysis.roles.linears import Dataflow, Linear
from peft_compiler.analysis.roles.nearest import Behind, behind
from peft_compiler.analysis.roles.residuals import Residual, active_operands, is_computed_from
from peft_compiler.site import Role, Rows


@dataclass(frozen=True, slots=True)
class Part:
    """A projection, or some of its rows, in a branch.

    Attributes:
        role: What it is for.
        linear: The projection.
        rows: Its rows that play the role; None for all, no row where that is unknown.
        way: The ops from it to the next projection, or to the residual add.
    """

    role: Role
    linear: Linear
    rows: Rows | None
    way: tuple[fx.Node, ...]


@dataclass(frozen=True, slots=True)
class Branch:
    """What a residual add joins to the stream, other than attention.

    Attributes:
        role: `FEED_FORWARD` or `MIXER`.
        parts: Its projections, each before those that feed it.
        end: The projection that its output comes from: the one down, or one more behind that.
    """

    role: Role
    parts: tuple[Part, ...]
    end: fx.Node


@dataclass(frozen=True, slots=True)
class _Search:
    """The residual add whose branch is looked at, and what else there is in the graph."""

    flow: Dataflow
    residual: Residual
    residuals: Mapping[fx.Node, Residual]
    attention_outputs: Collection[fx.Node]
    probe: RowProbe


def find_branches(
    flow: Dataflow,
    residuals: Mapping[fx.Node, Residual],
    attention_outputs: Collection[fx.Node],
    probe: RowProbe,
) -> tuple[Branch, ...]:
    """Returns every feed-forward layer and mixer that joins the stream, in order of execution."""
    found: dict[fx.Node, Branch | None] = {}
    nearby: dict[fx.Node, Branch] = {}
    for residual in residuals.values():
        search = _Search(flow, residual, residuals, attention_outputs, probe)
        ends = behind(flow, residual.branch, residual.floor)
        for end in _of_stream(flow, residual, ends.linears):
            if end in attention_outputs:
                found[end] = None
            elif end not in found:
                branch = _as_branch(search, end, ends)
                if branch is not None:
                    found[end] = branch
                    if branch.role is Role.MIXER and _mixes_only_nearby(flow, branch):
                        other = _as_branch(search, end, ends, frozenset(branch.parts[1].way))
                        nearby |= {end: other} if other is not None else {}
    return tuple(_stands_for(found, nearby))


def _of_stream(flow: Dataflow, residual: Residual, ends: Collection[fx.Node]) -> list[fx.Node]:
    """Returns the projections that a branch may end in: computed from its stream, if any of them is.

    Others only modulate it, as the gates that adaLN makes of a condition (DiT, arXiv:2212.09748).
    """
    own = [end for end in ends if is_computed_from(flow, residual.origin, end)]
    return own or [*ends]


def _stands_for(found: Mapping[fx.Node, Branch | None], nearby: Mapping[fx.Node, Branch]) -> Iterator[Branch]:
    """Yields the branches; what mixes only neighbours between two attentions is the feed-forward layer.

    SegFormer has a depthwise convolution in its feed-forward layers; one beside a feed-forward
    layer, as in a Conformer, is a mixer. None stands for attention in `found`.
    """
    branches = list(found.values())
    around = [None, *branches, None]
    for place, (down, branch) in enumerate(found.items()):
        attends = place > 0 and around[place] is None and around[place + 2] is None
        if branch is not None:
            yield nearby[down] if attends and down in nearby else branch


def _mixes_only_nearby(flow: Dataflow, branch: Branch) -> bool:
    """Whether all that mixes positions in a branch is depthwise convolutions."""
    mixing = branch.parts[1].way
    return all(kind(node) in CONVOLUTIONS and node not in flow.linears for node in mixing)


def _as_branch(
    search: _Search, end: fx.Node, ends: Behind, mixed: frozenset[fx.Node] = frozenset()
) -> Branch | None:
    """Returns the branch that ends in `end`, if it is one; what is in `mixed` does not make it a mixer."""
    flow, residual = search.flow, search.residual
    linear = flow.linears[end]
    inner = behind(flow, linear.data, residual.floor)
    if not inner.linears:
        return None
    way = ends.way(end)
    mixing = tuple(node for node in _mixing(flow, linear, inner) if node not in mixed)
    if mixing:
        inputs = _first_linears(search, linear.data)
        if not inputs:
            return None
        parts = [Part(Role.MIXER_INPUT, entry, None, mixing) for entry in inputs]
        return Branch(Role.MIXER, (Part(Role.MIXER_OUTPUT, linear, None, way), *parts), end)
    if any(node in search.residuals for node in inner.passed):
        return None
    if not _is_nonlinear(inner):
        return _within(search, end, inner)
    parts = _gate_and_up(flow, residual.floor, inner, search.probe) or tuple(
        Part(Role.UP, flow.linears[node], None, inner.way(node)) for node in inner.linears
    )
    return Branch(Role.FEED_FORWARD, (Part(Role.DOWN, linear, None, way), *parts), end)


def _within(search: _Search, end: fx.Node, inner: Behind) -> Branch | None:
    """Returns the feed-forward layer whose output only goes through one more projection, `end`.

    Experts of a narrower stream give their sum to one, and so does the shared block of Zamba.
    """
    downs = [node for node in inner.linears if node not in search.attention_outputs]
    found = [branch for down in downs if (branch := _as_branch(search, down, inner)) is not None]
    parts = tuple(part for branch in found if branch.role is Role.FEED_FORWARD for part in branch.parts)
    return Branch(Role.FEED_FORWARD, parts, end) if parts else None


def _mixing(flow: Dataflow, down: Linear, inner: Behind) -> tuple[fx.Node, ...]:
    """Returns the ops by which a position may learn of others, between the projections or in one of them."""
    between = [node for node in inner.passed | inner.stops if kind(node) in MIXES or node in flow.products]
    wide = [node for node in (down.node, *inner.linears) if _is_wide_convolution(flow.linears[node])]
    return tuple(sorted((*between, *wide), key=lambda node: fact(node).order))


def _is_wide_convolution(linear: Linear) -> bool:
    return kind(linear.node) in CONVOLUTIONS and any(size > 1 for size in fact(linear.weight).shape[2:])


def _is_nonlinear(found: Behind) -> bool:
    return any(kind(node) in NONLINEARITIES for node in found.passed)


def _first_linears(search: _Search, value: fx.Node) -> list[Linear]:
    """Returns the linears of a branch that are applied to the stream itself.

    A branch may add something to the stream before it is applied to it: then the sum is the stream.
    """
    flow, floor = search.flow, search.residual.floor

    def is_inside(node: fx.Node) -> bool:
        return node not in search.residuals or search.residuals[node].origin is not search.residual.origin

    found: dict[fx.Node, None] = {}
    seen: set[fx.Node] = set()
    stack = [value]
    while stack:
        node = stack.pop()
        if node in seen or fact(node).order <= floor or not is_inside(node):
            continue
        seen.add(node)
        if node in flow.linears and not behind(flow, flow.linears[node].data, floor, is_inside).linears:
            found[node] = None
        stack.extend(flow.active_inputs.get(node, ()))
    return [flow.linears[node] for node in sorted(found, key=lambda node: fact(node).order)]


def _gate_and_up(flow: Dataflow, floor: int, inner: Behind, probe: RowProbe) -> tuple[Part, ...]:
    """Returns the parts around the product of gate and up; the gate is the factor behind a nonlinearity."""
    products = [node for node in inner.passed if kind(node) == "mul"]
    for product in sorted(products, key=lambda node: -fact(node).order):
        factors = active_operands(flow, product)
        if len(factors) != 2 or fact(factors[0]).shape != fact(factors[1]).shape:
            continue
        left, right = (behind(flow, factor, floor) for factor in factors)
        if not left.linears or not right.linears:
            continue
        gate, up = ((factors[0], left), (factors[1], right))
        if _is_nonlinear(right) and not _is_nonlinear(left):
            gate, up = up, gate
        if set(left.linears).isdisjoint(right.linears):
            return (*_parts(flow, Role.GATE, gate[1]), *_parts(flow, Role.UP, up[1]))
        if list(left.linears) == list(right.linears):
            fused = [_fused(flow.linears[node], gate, up, probe) for node in left.linears]
            if all(fused):
                return tuple(part for parts in fused for part in parts)
    return ()


def _parts(flow: Dataflow, role: Role, found: Behind) -> list[Part]:
    return [Part(role, flow.linears[node], None, found.way(node)) for node in found.linears]


def _fused(
    linear: Linear, gate: tuple[fx.Node, Behind], up: tuple[fx.Node, Behind], probe: RowProbe
) -> tuple[Part, ...]:
    """Returns gate and up as rows of one projection; nothing where they share rows."""
    gate_rows, up_rows = probe.rows(linear, *gate), probe.rows(linear, *up)
    if gate_rows is None or up_rows is None or gate_rows.overlaps(up_rows):
        return ()
    return (
        Part(Role.GATE, linear, gate_rows, gate[1].way(linear.node)),
        Part(Role.UP, linear, up_rows, up[1].way(linear.node)),
    )
