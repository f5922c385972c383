"""Where token embeddings enter each tower, and where the tower's states come out again."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import fx

from peft_compiler.analysis.module_graph import fact, parent
from peft_compiler.analysis.ops import kind, selected
from peft_compiler.analysis.roles.attention import Attention
from peft_compiler.analysis.roles.blocks import Blocks
from peft_compiler.analysis.roles.embeddings_and_heads import Lookup
from peft_compiler.analysis.roles.linears import Dataflow
from peft_compiler.analysis.roles.stacks import called_once, common_path

_COUNTING = frozenset({"arange", "cumsum"})


@dataclass(frozen=True, slots=True)
class Entrance:
    """Where the embeddings of a lookup go on towards the first block of a stack.

    Attributes:
        lookup: The lookup of the tokens.
        stack: The stack of blocks.
        path: The module in whose forward the embeddings come about, by whatever child, and go on.
        positions: Entries of the table of positions, or None where there is none.
        states: Path of the module that runs every block of the stack, and returns what comes out.
        readers: Paths of the modules like `path` whose blocks attend to what comes out.
    """

    lookup: Lookup
    stack: str
    path: str
    positions: int | None
    states: str
    readers: tuple[str, ...] = ()


def find_entrances(
    flow: Dataflow, blocks: Blocks, attentions: Sequence[Attention], lookups: Sequence[Lookup]
) -> tuple[Entrance, ...]:
    """Returns one entrance for each stack of blocks that tokens flow into, in order of execution.

    Where several lookups flow into a stack (tokens, types of tokens), the first one counts.
    """
    found: dict[str, Entrance] = {}
    members: dict[str, list[str]] = {}
    for block in blocks.by_path.values():
        members.setdefault(block.stack, []).append(block.path)
    places = {lookup.node: place for place, lookup in enumerate(lookups)}
    passed: dict[str, set[fx.Node]] = {}
    for block in blocks.by_path.values():
        values = [node for call in flow.graph.calls.get(block.path, ()) for node in call.inputs]
        if block.stack in found or not values:
            continue
        # What lies before an earlier block of the stack holds no lookup, or the stack would be found.
        new = _before(blocks, block.stack, values, passed.setdefault(block.stack, set()))
        first = min((places[node] for node in new if node in places), default=None)
        if first is not None:
            before = _before(blocks, block.stack, values, set())
            states = called_once(flow.graph, common_path(members[block.stack]))
            lookup = lookups[first]
            path = _without_its_embeddings(flow, lookup, states)
            found[block.stack] = Entrance(lookup, block.stack, path, _positions(flow, before, lookup), states)
    return tuple(_with_readers(blocks, attentions, found))


def _with_readers(
    blocks: Blocks, attentions: Sequence[Attention], entrances: dict[str, Entrance]
) -> Iterator[Entrance]:
    for entrance in entrances.values():
        readers: dict[str, None] = {}
        for attention in attentions:
            here = blocks.holding(fact(attention.meeting.core).module)
            sources = (blocks.holding(fact(source).module) for source in attention.sources)
            attends = any(source is not None and source.stack == entrance.stack for source in sources)
            if attention.cross and attends and here is not None and here.stack in entrances:
                readers[entrances[here.stack].path] = None
        yield Entrance(
            entrance.lookup,
            entrance.stack,
            entrance.path,
            entrance.positions,
            entrance.states,
            tuple(readers),
        )


def _before(blocks: Blocks, stack: str, values: Iterable[fx.Node], passed: set[fx.Node]) -> set[fx.Node]:
    """Returns what `values` come from without passing another stack, and adds it to what was `passed`."""

    def is_end(node: fx.Node) -> bool:
        if node in passed:
            return True
        holder = blocks.holding(fact(node).module)
        return holder is not None and holder.stack != stack

    new = _reached(values, lambda node: node.all_input_nodes, is_end)
    passed |= new
    return new


def _reached(
    start: Iterable[fx.Node],
    step: Callable[[fx.Node], Iterable[fx.Node]],
    is_end: Callable[[fx.Node], bool] = lambda _: False,
) -> set[fx.Node]:
    found: set[fx.Node] = set()
    todo = list(start)
    while todo:
        node = todo.pop()
        if node not in found and not is_end(node):
            found.add(node)
            todo.extend(near for near in step(node) if "fact" in near.meta)
    return found


def _without_its_embeddings(flow: Dataflow, lookup: Lookup, path: str) -> str:
    """Returns the innermost module around `path`, or there, which is not given what was looked up."""
    after = _reached([lookup.node], lambda node: flow.active_users.get(node, ()))
    while path and not after.isdisjoint(
        node for call in flow.graph.calls.get(path, ()) for node in call.inputs
    ):
        path = parent(path)
    return called_once(flow.graph, path)


def _positions(flow: Dataflow, before: set[fx.Node], lookup: Lookup) -> int | None:
    """Returns the entries of the largest table that is looked up by counting the tokens, not by an input.

    A table of distances is looked up once for each pair of them.
    """
    tokens = fact(lookup.index).shape
    found: list[int] = []
    for node in before:
        if kind(node) == "embedding":
            table, indices = selected(node)
            entries = fact(table).shape[0]
            sources = _reached(indices, lambda index: index.all_input_nodes)
            # A buffer that holds every position in order is as long as the table.
            counts = any(kind(s) in _COUNTING or fact(s).shape[-1:] == (entries,) for s in sources)
            one_each = any(fact(index).shape in (tokens, tokens[-1:], (1, *tokens[-1:])) for index in indices)
            is_given = not flow.taint.inputs.keys().isdisjoint(indices)
            if table in flow.graph.parameters and counts and one_each and not is_given:
                found.append(entries)
    return max(found, default=None)
