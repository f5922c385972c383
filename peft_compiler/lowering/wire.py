"""One graph edit per `Wiring`. Nothing here knows any method.

Each edit finds its place in a local graph by the place's anchor and joins the inserted
module there. Edits at one place compose in plan order.
"""

import operator
from collections.abc import Callable
from typing import Any

from torch.fx import Graph, Node

from peft_compiler.errors import LoweringError
from peft_compiler.lowering.anchored import anchored, taker_of, tensors_given
from peft_compiler.lowering.applied import applied
from peft_compiler.lowering.casting import in_own_type, in_type_of
from peft_compiler.lowering.edit import Edit
from peft_compiler.lowering.extend_attention import core_node, extend_attention
from peft_compiler.lowering.extend_input import exchange_input, join_input
from peft_compiler.lowering.features import matrix, shaped_like, vectors_in, vectors_out
from peft_compiler.lowering.gated_attention import gate_attention
from peft_compiler.lowering.masks import mask_given
from peft_compiler.lowering.nodes import ancestors_after, current, take_over
from peft_compiler.lowering.parts import IN, OUT, gathered, own, own_gates, own_prompts, with_own_weight
from peft_compiler.lowering.returned import first_of, with_first
from peft_compiler.lowering.routed import join_stack
from peft_compiler.lowering.rows import on_rows, put_rows, take_rows
from peft_compiler.methods import Wiring
from peft_compiler.plan import NAMESPACE
from peft_compiler.site import Core, Edge, Input, Projection


def inserted_call(graph: Graph, edit: Edit, *args: Any, like: Node | None = None) -> Node:
    """Calls the inserted module at the current point of insertion.

    What it gives has the type of `like`, or else that of its first argument; with neither, its own.
    """
    name = f"{NAMESPACE}.{edit.name}"
    if edit.casts and (args or like is not None):
        return graph.call_function(in_own_type, (graph.get_attr(name), like or args[0], *args))
    return graph.call_module(name, args)


def wire_beside(graph: Graph, edit: Edit) -> None:
    """h(x) becomes h(x) + m(x), on the site's rows."""
    assert isinstance(edit.place, Projection)
    data, output = applied(graph, edit.place)
    with graph.inserting_before(output.next):
        vectors = gathered(graph, edit, vectors_in(graph, data, edit.place), IN)
        delta = inserted_call(graph, edit, vectors, like=output)
        rows = edit.place.rows_of_output
        if rows is not None:
            delta = graph.call_function(on_rows, (delta, rows.runs, rows.total))
        delta = own(graph, edit, delta, OUT)
        delta = shaped_like(graph, delta, output, edit.place)
        adapted = graph.call_function(operator.add, (output, delta))
    take_over(output, adapted)


def wire_on_weight(graph: Graph, edit: Edit) -> None:
    """W becomes m(W) wherever the forward reads it."""
    assert isinstance(edit.place, Projection)
    if edit.spread is not None:
        with_own_weight(graph, edit.place.weight, lambda weight: inserted_call(graph, edit, weight))
        return
    reads = [node for node in graph.nodes if node.op == "get_attr" and node.target == edit.place.weight]
    if not reads:
        raise LoweringError(f"the forward does not read its weight {edit.place.weight} itself")
    for read in reads:
        weight = current(read)
        with graph.inserting_before(weight.next):
            adapted = inserted_call(graph, edit, matrix(graph, weight, edit.place))
            adapted = shaped_like(graph, adapted, weight, edit.place)
        take_over(weight, adapted)


def wire_before(graph: Graph, edit: Edit) -> None:
    """h(x) becomes h(m(x)), h being the projection together with all that joined it before."""
    assert isinstance(edit.place, Projection)
    data, output = applied(graph, edit.place)
    within = {output, *ancestors_after(data, output)}
    with graph.inserting_before(min(user for user in data.users if user in within)):
        vectors = gathered(graph, edit, vectors_in(graph, data, edit.place), IN)
        adapted = own(graph, edit, inserted_call(graph, edit, vectors), IN)
        adapted = shaped_like(graph, adapted, data, edit.place)
    data.replace_all_uses_with(adapted, delete_user_cb=within.__contains__, propagate_meta=False)
    adapted.meta.update({key: data.meta[key] for key in ("shape", "dtype") if key in data.meta})
    adapted.meta["applied_to"] = data


def wire_after(graph: Graph, edit: Edit) -> None:
    """The activation y of a place becomes m(y)."""
    match edit.place:
        case Edge():
            _after_edge(graph, edit, edit.place)
        case Projection():
            _after_projection(graph, edit, edit.place)
        case _:
            _after_whole(graph, edit)


def wire_after_with_mask(graph: Graph, edit: Edit) -> None:
    """The activation y that a module gives becomes m(y, mask), mask being what its attention is given."""
    _after_whole(graph, edit, mask_given(graph))


def _after_edge(graph: Graph, edit: Edit, place: Edge) -> None:
    op, activation = _entering(graph, place)
    with graph.inserting_before(op):
        adapted = inserted_call(graph, edit, activation)
    _exchange(op, activation, adapted)


def wire_parallel(graph: Graph, edit: Edit) -> None:
    """The activation y on its way into an op becomes y + m(x), x being the stream that its sub-layer left."""
    assert isinstance(edit.place, Edge)
    op, activation = _entering(graph, edit.place)
    assert edit.place.source is not None
    data = tensors_given(taker_of(graph, edit.place.source, op))[edit.place.source.operand]
    with graph.inserting_before(op):
        delta = inserted_call(graph, edit, data)
        adapted = graph.call_function(operator.add, (activation, delta))
    _exchange(op, activation, adapted)


def wire_after_norm(graph: Graph, edit: Edit) -> None:
    """The activation y on its way into an add of x becomes y + m(norm(x + y)), norm being the add's own."""
    assert isinstance(edit.place, Edge)
    op, activation = _entering(graph, edit.place)
    with graph.inserting_before(op):
        data = graph.call_function(operator.add, tuple(tensors_given(op)[:2]))
        if edit.place.norm is not None:
            data = graph.call_module(edit.place.norm, (data,))
        delta = inserted_call(graph, edit, data)
        adapted = graph.call_function(operator.add, (activation, delta))
    _exchange(op, activation, adapted)


def _entering(graph: Graph, place: Edge) -> tuple[Node, Node]:
    """Returns the op of an edge, and the activation that enters it after earlier edits."""
    op = anchored(graph, place.anchor)
    return op, tensors_given(op)[place.operand]


def _exchange(op: Node, old: Node, new: Node) -> None:
    """Lets `new` enter `op` in place of `old`."""
    new.meta.update({key: old.meta[key] for key in ("shape", "dtype")})
    op.update_arg(op.args.index(old), new)


def _after_projection(graph: Graph, edit: Edit, place: Projection) -> None:
    _, output = applied(graph, place)
    with graph.inserting_before(output.next):
        vectors = gathered(graph, edit, vectors_out(graph, output, place), OUT)
        rows = place.rows_of_output
        if rows is None:
            adapted = inserted_call(graph, edit, vectors)
        else:
            taken = inserted_call(graph, edit, graph.call_function(take_rows, (vectors, rows.runs)))
            adapted = graph.call_function(put_rows, (vectors, taken, rows.runs))
        adapted = own(graph, edit, adapted, OUT)
        adapted = shaped_like(graph, adapted, output, place)
    take_over(output, adapted)


def _after_whole(graph: Graph, edit: Edit, *more: Any) -> None:
    returned = graph.output_node()
    (result,) = returned.args
    with graph.inserting_before(returned):
        if isinstance(result, Node) and "shape" in result.meta:
            adapted = inserted_call(graph, edit, result, *more)
            adapted.meta.update({key: result.meta[key] for key in ("shape", "dtype")})
        else:
            first = gathered(graph, edit, graph.call_function(first_of, (result,)), OUT)
            adapted = own(graph, edit, inserted_call(graph, edit, first, *more), OUT)
            adapted = graph.call_function(with_first, (result, adapted))
    returned.args = (adapted,)


def wire_extend_kv(graph: Graph, edit: Edit) -> None:
    """Keys and values of an attention are preceded by those of m()."""
    assert isinstance(edit.place, Core)
    first = next(node for node in graph.nodes if node.op != "placeholder")
    with graph.inserting_before(first):
        prompts = own_prompts(graph, edit, inserted_call(graph, edit))
    extend_attention(graph, edit.place, prompts)


def wire_extend_kv_by_input(graph: Graph, edit: Edit) -> None:
    """Keys and values of an attention are preceded by those of m(x), x being what it is applied to."""
    assert isinstance(edit.place, Core)
    source = edit.place.source
    assert source is not None
    taker = taker_of(graph, source, core_node(graph, edit.place.anchor))
    with graph.inserting_before(taker):
        prompts = own_prompts(graph, edit, inserted_call(graph, edit, tensors_given(taker)[source.operand]))
    extend_attention(graph, edit.place, prompts)


def wire_gated_kv(graph: Graph, edit: Edit) -> None:
    """To the context of an attention is added what it finds in the prompts of m(), through gates."""
    assert isinstance(edit.place, Core)
    first = next(node for node in graph.nodes if node.op != "placeholder")
    with graph.inserting_before(first):
        inserted = inserted_call(graph, edit, like=_stream(graph))
        prompts, gates = (graph.call_function(operator.getitem, (inserted, index)) for index in range(2))
        gates = own_gates(graph, edit, gates)
    gate_attention(graph, edit.place, prompts, gates)


def wire_extend_input(graph: Graph, edit: Edit) -> None:
    """Embeddings of tokens are preceded by those of m()."""
    join_input(graph, edit, lambda: inserted_call(graph, edit))


def wire_exchange_input(graph: Graph, edit: Edit) -> None:
    """Token ids beyond the vocabulary stand for the embeddings of m()."""
    assert isinstance(edit.place, Input)
    exchange_input(graph, edit.place, lambda: inserted_call(graph, edit))


def wire_replace(graph: Graph, edit: Edit) -> None:
    """h(x) becomes m(x)."""
    host = anchored(graph, None)
    name, kwargs = f"{NAMESPACE}.{edit.name}", dict(host.kwargs)
    with graph.inserting_before(host):
        _, data, *others = host.args
        arguments = (gathered(graph, edit, data, IN), *others)  # pyright: ignore[reportArgumentType]
        if edit.casts:
            copied = graph.call_function(in_type_of, (host.args[0], graph.get_attr(name), *arguments), kwargs)
        else:
            copied = graph.call_module(name, arguments, kwargs)
        copied = own(graph, edit, copied, OUT)
    take_over(host, copied)
    graph.erase_node(host)


def wire_routed(graph: Graph, edit: Edit) -> None:
    """h(x) becomes h(x) + m(x), on the site's rows, and the stack of the site runs twice."""
    if isinstance(edit.place, Projection):
        wire_beside(graph, edit)
    else:
        join_stack(graph, edit)


WIRE: dict[Wiring, Callable[[Graph, Edit], None]] = {
    Wiring.BESIDE: wire_beside,
    Wiring.ON_WEIGHT: wire_on_weight,
    Wiring.BEFORE: wire_before,
    Wiring.AFTER: wire_after,
    Wiring.AFTER_WITH_MASK: wire_after_with_mask,
    Wiring.PARALLEL: wire_parallel,
    Wiring.AFTER_NORM: wire_after_norm,
    Wiring.EXTEND_KV: wire_extend_kv,
    Wiring.EXTEND_KV_BY_INPUT: wire_extend_kv_by_input,
    Wiring.GATED_KV: wire_gated_kv,
    Wiring.EXTEND_INPUT: wire_extend_input,
    Wiring.EXCHANGE_INPUT: wire_exchange_input,
    Wiring.ROUTED: wire_routed,
    Wiring.REPLACE: wire_replace,
}


def _stream(graph: Graph) -> Node:
    """Returns the activation that a forward is given: its first argument of numbers."""
    given = (node for node in graph.nodes if node.op == "placeholder" and "dtype" in node.meta)
    return next(node for node in given if node.meta["dtype"].is_floating_point)
