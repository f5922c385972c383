"""Puts trained embeddings in front of a tower's tokens: those at one input join several modules.

The tower's module is called with a longer sequence, the module that returns its states drops
what was added, and the modules that attend to those states let every query see it. Where the
tower's module takes no embeddings, the tokens' own are exchanged inside, at the lookup.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, Node

from peft_compiler.errors import LoweringError
from peft_compiler.lowering.edit import Batch, Edit, Front, Lookup, Members, Reader, Shown, Standing, States
from peft_compiler.lowering.emit import ITSELF
from peft_compiler.lowering.ensembles import answered, apart, repeated, side_by_side
from peft_compiler.lowering.prompted_calls import (
    EMBEDDINGS,
    POSITIONS,
    positions_of,
    shortened,
    shortened_but_for_last,
)
from peft_compiler.lowering.prompted_input import (
    by_name,
    called_by_name,
    exchanged,
    extended,
    hiding,
    spelt_out,
)
from peft_compiler.lowering.shown_states import answered_by_name, reading, shown_states, whole
from peft_compiler.plan import Insertion
from peft_compiler.site import Input


def edits_of(insertions: Sequence[tuple[Insertion, Tensor]], host: nn.Module) -> Iterator[tuple[str, Edit]]:
    """Yields every edit that the insertions at one input ask for, with the path of the module to edit.

    Each stands in front of all that come before it in the plan.

    Args:
        insertions: Those at one site, each with what its module gives: prompts (length, d), or
            (members, length, d) of an ensemble.
        host: The module at the site.
    """
    first, _ = insertions[0]
    site, place = first.site, first.site.place
    assert isinstance(place, Input)
    behind = sum(prompts.shape[-2] for _, prompts in insertions)
    takes_embeddings = EMBEDDINGS in inspect.signature(host.forward).parameters
    standing = _standing(site.path, place, host)
    states = States(behind, within=False, standing=standing)
    # Before all else, since what comes after is already made for each row of the longer batch.
    for insertion, prompts in insertions:
        wiring, name, answer = insertion.wiring, insertion.name, insertion.method.ensemble_answer
        if answer is not None:
            yield "", Edit(name, wiring, Members(len(prompts), answer, place.argument))
            yield site.path, Edit(name, wiring, Batch(len(prompts), place.argument, bool(place.readers)))
    for insertion, prompts in insertions:
        wiring, name = insertion.wiring, insertion.name
        yield site.path, Edit(name, wiring, Front(place, behind, standing))
        behind -= prompts.shape[-2]
        if not takes_embeddings:
            table = place.table.rpartition(".")[0]
            yield site.path, Edit(name, wiring, Lookup(table, place.anchor, behind))
    # After all of them, since the states are those of the whole sequence.
    wiring, name = first.wiring, first.name
    if place.readers:
        ensembles = (len(prompts) for insertion, prompts in insertions if insertion.method.ensemble_answer)
        members = next(ensembles, 1)
        yield from ((path, Edit(name, wiring, Reader(members))) for path in place.readers)
        yield site.path, Edit(name, wiring, replace(states, is_read=True))
        around = common_parent([site.path, *place.readers])
        if around not in (site.path, *place.readers):
            yield around, Edit(name, wiring, Shown(states.length, members))
    else:
        yield site.path, Edit(name, wiring, states)
        if place.states != site.path:
            yield place.states, Edit(name, wiring, replace(states, within=True))


def _standing(path: str, place: Input, host: nn.Module) -> Standing:
    """Returns where prompts at the input of the module at `path` stand in a padded row."""
    accepted = inspect.signature(host.forward).parameters
    if EMBEDDINGS not in accepted or place.readers or place.states != path:
        return Standing.FIRST
    return Standing.AS_TOLD if POSITIONS in accepted else Standing.BEHIND


def common_parent(paths: Sequence[str]) -> str:
    """Returns the path of the innermost module that holds all of several.

    >>> common_parent(["model.encoder", "model.decoder.stack"])
    'model'
    """
    steps = zip(*(path.split(".") for path in paths), strict=False)
    return ".".join(step[0] for step in takewhile(lambda step: len(set(step)) == 1, steps))


def open_graph(original: type[nn.Module], forward: Callable[..., Any]) -> Graph:
    """Returns the graph of a call of `forward` by name, for edits to change its arguments and result."""
    graph = Graph()
    graph._graph_namespace.create_name("self", None)  # pyright: ignore[reportPrivateUsage]
    args, kwargs = graph.placeholder("*args"), graph.placeholder("**kwargs")
    itself = graph.get_attr(ITSELF)
    names = tuple(list(inspect.signature(original.forward).parameters)[1:])
    arguments = graph.call_function(by_name, (names, args, kwargs))
    arguments.meta["given"] = True
    named = called_by_name(forward)
    named.__module__ = original.__name__
    host = graph.create_node("call_function", named, (itself, arguments), name="host")
    host.meta |= {"host": True, "takes_embeddings": EMBEDDINGS in names}
    graph.output(host)
    return graph


def join_input(graph: Graph, edit: Edit, inserted: Callable[[], Node]) -> None:
    """Makes one of the edits of `edits_of`; `inserted` adds a call of the inserted module to the graph."""
    match edit.place:
        case Front():
            _extend_call(graph, edit.place, inserted)
        case Members():
            _join_answers(graph, edit.place)
        case Batch():
            _repeat_rows(graph, edit.place)
        case States():
            _drop_prompts(graph, edit.place)
        case Shown():
            _show(graph, edit.place)
        case Reader():
            host = _host(graph)
            with graph.inserting_before(host):
                read = graph.call_function(whole, (host.args[1],))
                states = graph.call_function(apart, (read, edit.place.members))
                host.args = (host.args[0], graph.call_function(reading, (states,)))
        case _:
            assert isinstance(edit.place, Lookup)
            _exchange_embeddings(graph, edit.place, inserted)


def _host(graph: Graph) -> Node:
    return next(node for node in graph.nodes if node.meta.get("host"))


def _extend_call(graph: Graph, place: Front, inserted: Callable[[], Node]) -> None:
    """Calls the host with prompts in front of its tokens."""
    host = _host(graph)
    itself, arguments = host.args
    table = place.input.table.rpartition(".")[0]
    settings = (place.input.argument, table, host.meta["takes_embeddings"], place.hidden, place.standing)
    with graph.inserting_before(host):
        prompts = inserted()
        longer = graph.call_function(extended, (itself, prompts, arguments, *settings))
        length = graph.call_method("size", (prompts, -2))
    host.args = (itself, longer)
    returning(graph, hiding, longer, length, place.standing)


def exchange_input(graph: Graph, place: Input, embeddings: Callable[[], Node]) -> None:
    """Calls the host with `embeddings` for the tokens beyond its vocabulary.

    Whatever stands in front of the tokens comes later: it does not know of such tokens.

    Raises:
        LoweringError: If the host takes no embeddings.
    """
    host = _host(graph)
    if not host.meta["takes_embeddings"]:
        raise LoweringError(
            f"the forward takes no '{EMBEDDINGS}' that could stand for pseudo tokens; leave out the template"
        )
    given = _given(graph)[-1]
    users = list(given.users)
    with graph.inserting_after(given):
        trained = embeddings()
    with graph.inserting_after(trained):
        settings = (place.argument, place.table)
        spelt = graph.call_function(spelt_out, (host.args[0], trained, given, *settings))
    given.replace_all_uses_with(spelt, delete_user_cb=users.__contains__)


def _join_answers(graph: Graph, place: Members) -> None:
    """Calls the host with every row once for each prompt, and joins what it answers."""
    host = _host(graph)
    with graph.inserting_before(host):
        rows = graph.call_function(repeated, (host.args[1], place.count, place.tokens))
    host.args = (host.args[0], rows)
    returning(graph, answered, rows, place.count, place.answer)


def _repeat_rows(graph: Graph, place: Batch) -> None:
    """Repeats the rows that the host is given before anything is made of them."""
    given = _given(graph)[0]
    users = list(given.users)
    with graph.inserting_after(given):
        rows = graph.call_function(repeated, (given, place.count, place.tokens))
    rows.meta["given"] = True
    given.replace_all_uses_with(rows, delete_user_cb=users.__contains__)
    if place.is_read:
        returning(graph, side_by_side, place.count)


def _given(graph: Graph) -> list[Node]:
    """Returns the arguments of the host as they are given, and then with a row for each prompt."""
    return [node for node in graph.nodes if node.meta.get("given")]


def _drop_prompts(graph: Graph, place: States) -> None:
    """Lets the host return its states without those of the prompts."""
    host = _host(graph)
    with graph.inserting_before(host):
        call = graph.call_function(positions_of, (host.args[1], place.length, place.within, place.standing))
    returning(graph, shortened_but_for_last if place.is_read else shortened, call)


def _show(graph: Graph, place: Shown) -> None:
    """Lets the host show the states of its encoder, and attention to them, without those of prompts."""
    host = _host(graph)
    given = host.args[1]
    with graph.inserting_before(host):
        host.args = (host.args[0], graph.call_function(answered_by_name, (given,)))
    returning(graph, shown_states, given, place.length, place.members)


def _exchange_embeddings(graph: Graph, place: Lookup, inserted: Callable[[], Node]) -> None:
    """Exchanges the embeddings of tokens that stand for prompts, where they are looked up."""
    for node in graph.nodes:
        if (place.anchor is not None and node.meta.get("anchor") == place.anchor) or (
            place.anchor is None and node.op == "call_module" and node.target == place.module
        ):
            users = list(node.users)
            with graph.inserting_after(node):
                prompts = inserted()
            with graph.inserting_after(prompts):
                embeddings = graph.call_function(exchanged, (prompts, node, place.start))
            node.replace_all_uses_with(embeddings, delete_user_cb=users.__contains__)
            return
    raise LoweringError(
        f"the forward takes no '{EMBEDDINGS}' and does not look up {place.module or 'its tokens'} itself; "
        "expected one of the two"
    )


def returning(graph: Graph, function: Callable[..., Any], *args: Any) -> None:
    """Hands what the graph returns through `function`."""
    output = graph.output_node()
    with graph.inserting_before(output):
        output.args = (graph.call_function(function, (output.args[0], *args)),)
