"""Lists and dicts that a forward writes to: its caller finds there what was written, by it and below it."""

import copy
import operator
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch.fx import Node

if TYPE_CHECKING:
    from peft_compiler.lowering.values import ValueMap

Container = list[Any] | dict[Any, Any]


def fill(container: Container, items: Container) -> None:
    """Lets a list or dict hold `items` and nothing else, as the forward left it."""
    container.clear()
    if isinstance(container, dict):
        container.update(items)
    else:
        container.extend(items)


def held(items: Container) -> Container:
    """Returns a list or dict that is written to further on."""
    return items


class Written:
    """Which node gives which container of one traced run, and what the graph knows to be in it."""

    def __init__(self, values: "ValueMap") -> None:
        self.values = values
        self.known: dict[int, tuple[Node, Any, Any]] = {}

    def noted(self, node: Node, container: Any) -> Any:
        """Returns a container, if it is one, that `node` gives: the forward may write to it."""
        if type(container) in (list, dict):
            self.known[id(container)] = node, container, copy.copy(container)
        return container

    def finish(self) -> None:
        """Lets the graph write what the forward itself wrote."""
        for node, container, before in self.known.values():
            if _differs(container, before):
                self.values.graph.call_function(fill, (node, self.values.node_of(container)))

    @contextmanager
    def below(self, node: Node, given: Any, plain: Any) -> Generator[None]:
        """While it lasts, a module runs that may write to what it is given.

        Args:
            node: The call of the module.
            given: Its arguments, by position and by name, as the forward sees them.
            plain: The same with values in place of symbols: copies, which the module writes to.
        """
        before = [
            {place: copy.copy(value) for place, value in _places(each) if type(value) in (list, dict)}
            for each in plain
        ]
        yield
        if node.op != "call_module":
            return
        for seen, ran, was in zip(given, plain, before, strict=True):
            for place in was:
                if _differs(ran[place], was[place]):
                    holder = self._holder(node, place, seen[place])
                    self._take_over(holder, seen[place], ran[place], was[place])

    def _holder(self, call: Node, place: int | str, container: Any) -> Node:
        """Returns the node that gives a container, which is handed on itself in place of a copy."""
        spelt = call.args[place] if isinstance(place, int) else call.kwargs[place]
        with self.values.graph.inserting_before(call):
            holder, _, before = self.known.get(id(container), (None, None, container))
            if holder is None:
                holder = self.values.graph.call_function(held, (spelt,))
            elif _differs(container, before):
                self.values.graph.call_function(fill, (holder, spelt))
        if isinstance(place, int):
            call.update_arg(place, holder)
        else:
            call.update_kwarg(place, holder)
        return holder

    def _take_over(self, holder: Node, seen: Any, ran: Any, was: Any) -> None:
        """Lets the forward see in a container what was written below it."""
        known, kept = dict(_places(was)), dict(_places(seen))
        items = {
            place: kept[place]
            if place in known and known[place] is value
            else self.values.item(holder, place, value)
            for place, value in _places(ran)
        }
        fill(seen, items if isinstance(seen, dict) else [*items.values()])
        self.noted(holder, seen)


def _places(container: Any) -> Iterable[tuple[Any, Any]]:
    return container.items() if isinstance(container, dict) else enumerate(container)


def _differs(container: Any, before: Any) -> bool:
    """Whether a list or dict holds other objects than before, or in another order."""
    if isinstance(container, dict):
        return list(container) != list(before) or _differs([*container.values()], [*before.values()])
    return len(container) != len(before) or not all(map(operator.is_, container, before))
