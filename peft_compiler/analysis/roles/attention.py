"""Where queries, keys and values meet, and the projections that make them."""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import fx

from peft_compiler.analysis.module_graph import fact
from peft_compiler.analysis.ops import ATTENTION, PARTS, argument, kind, tensors
from peft_compiler.analysis.roles.fused_rows import RowProbe
from peft_compiler.analysis.roles.linears import Dataflow, Linear
from peft_compiler.analysis.roles.nearest import Behind, ahead, behind, data_of
from peft_compiler.analysis.roles.operands import Projected, projections_of, search_operands
from peft_compiler.analysis.roles.replay import index_along, replay, varies_along
from peft_compiler.analysis.roles.residuals import Residual, is_layer
from peft_compiler.analysis.roles.softmax import axis_of, is_softmax
from peft_compiler.site import Role

# Of the linears after attention, those at most this much farther than the nearest are as near.
_SLACK = 2
_GATHERS = frozenset({"gather", "take_along_dim", "as_strided"})


@dataclass(frozen=True, slots=True)
class Meeting:
    """The values that meet in one attention.

    Attributes:
        core: The `scaled_dot_product_attention`, or the softmax over the keys.
        query: The queries as they meet the keys.
        key: The keys, likewise.
        value: The values that are averaged.
        context: The average.
        scores: The product of queries and keys, where the attention is spelt out.
    """

    core: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    context: fx.Node
    scores: fx.Node | None = None

    @property
    def operands(self) -> Mapping[Role, fx.Node]:
        """What each of the three roles feeds."""
        return {Role.QUERY: self.query, Role.KEY: self.key, Role.VALUE: self.value}


@dataclass(frozen=True, slots=True)
class Attention:
    """One attention with its projections.

    Attributes:
        meeting: Where it happens.
        projections: What feeds each operand, nearest first.
        outputs: The projections of its result: one, none, or one for each stream that attends jointly.
        entry: The first projection on the way to the queries, whose data is what the attention is
            applied to, or None.
        sources: The heads of the streams that keys come from.
        cross: Whether that is another stream than the one that queries come from, now or in an earlier layer.
    """

    meeting: Meeting
    projections: Mapping[Role, tuple[Projected, ...]]
    outputs: tuple[Linear, ...]
    entry: Linear | None
    sources: frozenset[fx.Node]
    cross: bool


def find_attentions(
    flow: Dataflow, residuals: Mapping[fx.Node, Residual], probe: RowProbe
) -> tuple[Attention, ...]:
    """Returns every attention, in order of execution."""
    found: list[Attention] = []
    for meeting in _meetings(flow):
        searches = search_operands(flow, meeting.operands)
        projections = {
            role: projections_of(flow, meeting.operands[role], search, residuals, probe)
            for role, search in searches.items()
        }
        if _weighs_states(flow, meeting, searches):
            continue
        sources = _streams(flow, meeting.key, residuals)
        cross = sources.isdisjoint(_and_earlier(flow, _streams(flow, meeting.query, residuals), residuals))
        outputs = _outputs(flow, meeting.context, residuals)
        entry = _entry(flow, meeting, projections.get(Role.QUERY, ()), residuals)
        found.append(Attention(meeting, projections, outputs, entry, sources, cross))
    return tuple(found)


def _weighs_states(flow: Dataflow, meeting: Meeting, searches: Mapping[Role, Behind]) -> bool:
    """Whether an attention only weighs states, such as those of earlier layers, by learned queries.

    Then no query is projected, and what lies behind its keys lies behind its values: whatever
    made the states, which is no projection of this attention.
    """
    made = [set(searches[role].linears) for role in (Role.QUERY, Role.KEY, Role.VALUE)]
    is_learned = meeting.query not in flow.taint.activations
    return not made[0] and made[1] == made[2] and (bool(made[1]) or is_learned)


def _meetings(flow: Dataflow) -> Iterator[Meeting]:
    for node in flow.graph.nodes:
        if node not in flow.taint.activations:
            continue
        if kind(node) == ATTENTION:
            operands = [argument(node, place, name) for place, name in enumerate(("query", "key", "value"))]
            if all(isinstance(operand, fx.Node) for operand in operands):
                yield Meeting(node, *operands, context=node)
        elif is_softmax(node):
            meeting = _written_out(flow, node)
            if meeting is not None:
                yield meeting


def _written_out(flow: Dataflow, softmax: fx.Node) -> Meeting | None:
    """Returns the attention around a softmax: a product of activations before it, and one after."""
    scores = _scores(flow, softmax)
    context = _context(flow, softmax)
    if scores is None or context is None:
        return None
    query, key = _query_and_key(flow, softmax, scores)
    product, weights = context
    left, right = flow.products[product]
    return Meeting(softmax, query, key, right if weights is left else left, product, scores)


def _scores(flow: Dataflow, softmax: fx.Node) -> fx.Node | None:
    """Returns the product of queries and keys: the one that is least like a relative position's."""
    found: dict[fx.Node, tuple[bool, int]] = {}
    seen: set[fx.Node] = set()
    start = flow.active_inputs[softmax][0] if flow.active_inputs[softmax] else None
    queue = deque([(start, False, 0)] if start else [])
    while queue:
        node, gathered, distance = queue.popleft()
        if node in seen:
            continue
        seen.add(node)
        if node in flow.products:
            found[node] = (gathered, distance)
        elif not (node in flow.linears or kind(node) in (ATTENTION, "embedding") or is_softmax(node)):
            gathered = gathered or kind(node) in _GATHERS
            queue.extend((source, gathered, distance + 1) for source in data_of(flow, node))

    def strangeness(product: fx.Node) -> tuple[int, bool, int]:
        learned = sum(not behind(flow, operand).linears for operand in flow.products[product])
        return (learned, *found[product])

    return min(found, key=strangeness, default=None)


def _context(flow: Dataflow, softmax: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Returns the nearest product that the softmax feeds, and the operand that comes from it."""
    seen: set[fx.Node] = set()
    queue = deque([softmax])
    while queue:
        node = queue.popleft()
        for user in flow.active_users[node]:
            if user in flow.products:
                return user, node
            ends = user in flow.linears or kind(user) == ATTENTION or is_softmax(user)
            if user not in seen and not ends:
                seen.add(user)
                queue.append(user)
    return None


def _query_and_key(flow: Dataflow, softmax: fx.Node, scores: fx.Node) -> tuple[fx.Node, fx.Node]:
    """Returns the operands of `scores` told apart: softmax runs over the axis that the keys bring."""
    left, right = flow.products[scores]
    shape = fact(scores).shape
    before = flow.active_inputs[softmax][0]
    axis = axis_of(softmax)
    region = behind(flow, before).passed
    for place in (len(shape) - 1, len(shape) - 2):
        probe = index_along(shape, place)
        arrived = () if probe is None else replay({scores: probe}, region, before)
        if any(varies_along(tensor, axis) for tensor in arrived):
            return (left, right) if _comes_from_right(scores, place) else (right, left)
    return left, right


def _comes_from_right(product: fx.Node, axis: int) -> bool:
    """Whether an axis of a product is one of its right operand rather than of its left one."""
    equation = product.args[0]
    if isinstance(equation, str) and "->" in equation:
        terms, out = equation.replace(" ", "").split("->")
        letter = out[axis - len(fact(product).shape)]
        return letter in terms.split(",")[1]
    return axis == len(fact(product).shape) - 1


def _streams(
    flow: Dataflow, value: fx.Node, residuals: Mapping[fx.Node, Residual], by_layers: bool = True
) -> frozenset[fx.Node]:
    """Returns the values at the head of every stream that `value` was computed from within its branch.

    Args:
        flow: The graph.
        value: Where to start.
        residuals: The adds that streams are made of.
        by_layers: Whether the way may go through a linear or an attention.
    """
    heads: set[fx.Node] = set()
    seen: set[fx.Node] = set()
    stack = [value]
    while stack:
        node = stack.pop()
        if node in seen or (not by_layers and is_layer(flow, node)):
            continue
        seen.add(node)
        sources = flow.active_inputs.get(node, ())
        if node in residuals or not sources:
            heads.add(node)
        else:
            stack.extend(sources)
    return frozenset(heads)


def _and_earlier(
    flow: Dataflow, heads: frozenset[fx.Node], residuals: Mapping[fx.Node, Residual]
) -> frozenset[fx.Node]:
    """Returns the heads of streams, and those of the same streams before each branch joined them.

    A layer may attend to the keys of an earlier one (KV sharing, as in Gemma 3n). What a layer makes
    of something else, as the first one of a decoder does, starts a stream of its own.
    """
    found: set[fx.Node] = set()
    todo = [*heads]
    while todo:
        head = todo.pop()
        if head not in found:
            found.add(head)
            if head in residuals:
                todo.extend(_streams(flow, residuals[head].skip, residuals, by_layers=False))
    return frozenset(found)


def _outputs(flow: Dataflow, context: fx.Node, residuals: Mapping[fx.Node, Residual]) -> tuple[Linear, ...]:
    """Returns the first linear after an attention, unless the result joins the stream before.

    Where several streams attend jointly (MMDiT, arXiv:2403.03206), it is the first after each one's part.
    What several linears read alike is a state of its own, as a mean over layers that is
    taken by attention: they are the next sub-layer, and none of them is the output.
    """

    def is_end(user: fx.Node, operand: fx.Node) -> bool:
        joins = user in residuals and residuals[user].branch is operand
        return joins or user in flow.products or kind(user) == ATTENTION

    found = ahead(flow, context, is_end)
    nearest = min(found.values(), default=0)
    near = sorted((node for node in found if found[node] <= nearest + _SLACK), key=lambda n: fact(n).order)
    read = [flow.linears[node].data for node in near]
    parts = [node for node, data in zip(near, read, strict=True) if _is_part(flow, data, context)]
    outputs = parts if len(parts) > 1 else near[:1]
    alone = all(read.count(flow.linears[node].data) == 1 for node in outputs)
    return tuple(flow.linears[node] for node in outputs) if alone else ()


def _is_part(flow: Dataflow, value: fx.Node, whole: fx.Node) -> bool:
    return any(kind(node) in PARTS for node in behind(flow, value, fact(whole).order).passed)


def _entry(
    flow: Dataflow,
    meeting: Meeting,
    queries: tuple[Projected, ...],
    residuals: Mapping[fx.Node, Residual],
) -> Linear | None:
    """Returns the first linear that makes queries: several stand in a row where a query is of low rank."""
    if not queries:
        return None
    entry, inside = queries[0].linear, f"{fact(meeting.core).module}."
    while True:
        before = behind(flow, entry.data, may_pass=lambda node: node not in residuals).linears
        first = next((node for node in before if fact(node).module.startswith(inside)), None)
        if first is None:
            return entry
        entry = flow.linears[first]


def has_learned_bias(flow: Dataflow, core: fx.Node) -> bool:
    """Whether what is added to the scores is learned, or depends on the content by more than the keys."""
    if kind(core) == ATTENTION:
        mask = argument(core, 3, "attn_mask")
        return mask in flow.taint.bases or mask in flow.taint.activations
    found = behind(flow, flow.active_inputs[core][0])
    products = [node for node in found.stops if node in flow.products]
    added = [node for node in (*found.passed, *products) if kind(node) in ("add", "sub", "baddbmm")]
    learned = any(operand in flow.taint.bases for node in added for operand in tensors(node))
    return learned or len(products) > 1 or bool(found.linears)
