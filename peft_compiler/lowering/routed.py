"""Lets a stack of blocks run twice, the second time as the routers find best that read the first.

Several modules join in: the one that runs the stack calls its forward twice, the one that
gives the last states shows them to the routers, and each block hands on what its places are
given. It takes that as arguments of its own, so that a checkpoint of a block keeps it until
the block is run again.
"""

import contextvars
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph

from peft_compiler.errors import LoweringError
from peft_compiler.lowering.anchored import anchored
from peft_compiler.lowering.casting import accepted_by
from peft_compiler.lowering.doubled_cache import join_new, parted
from peft_compiler.lowering.edit import Carrier, Edit, TwoRuns, Witness
from peft_compiler.lowering.extend_input import returning
from peft_compiler.lowering.packed import expect_one_in_each_row
from peft_compiler.methods import Wiring
from peft_compiler.methods._routing import Router, given_now, giving
from peft_compiler.plan import NAMESPACE, Insertion
from peft_compiler.site import Stack

Arguments = Mapping[str, Any]

CARRIED = "given_to_places_of"
"""Argument that says to whose places the last positional arguments are given."""


class _Run(threading.local):
    """The states that the first run of a stack, in this thread, has shown, by the path of the stack."""

    states: dict[str, Tensor] | None = None


_RUN = _Run()


def edits_of_stacks(
    model: nn.Module, routed: Mapping[Stack, list[tuple[Insertion, Router]]]
) -> Iterator[tuple[str, Edit, Mapping[str, Router]]]:
    """Yields every edit that routed insertions ask for but those of their own places.

    Args:
        model: The model.
        routed: The insertions in each stack, with their routers.

    Returns:
        The path of each module to edit, the edit, and the routers to insert there by their names.
    """
    for stack, members in routed.items():
        routers = {f"router_{insertion.rule + 1}": router for insertion, router in members}
        shown = stack.states != stack.path
        runs = TwoRuns(tuple(routers), stack.path if shown else None)
        yield stack.path, Edit(next(iter(routers)), Wiring.ROUTED, runs), routers
        if shown:
            yield stack.states, Edit("", Wiring.ROUTED, Witness(stack.path)), {}
        paths = [insertion.site.path for insertion, _ in members]
        for path in dict.fromkeys(_outermost_called(model, stack.path, path) for path in paths):
            if path is not None:
                yield path, Edit("", Wiring.ROUTED, Carrier()), {}


def _outermost_called(model: nn.Module, above: str, path: str) -> str | None:
    """Returns the outermost module between two that is called and no mere collection, or None."""
    module = model.get_submodule(above)
    for name in path.removeprefix(f"{above}." if above else "").split("."):
        above, module = f"{above}.{name}".removeprefix("."), module.get_submodule(name)
        if above != path and not isinstance(module, nn.ModuleList | nn.ModuleDict):
            return above
    return None


def join_stack(graph: Graph, edit: Edit) -> None:
    """Makes one of the edits of `edits_of_stacks`."""
    match edit.place:
        case TwoRuns():
            host = anchored(graph, None)
            with graph.inserting_before(host):
                routers = [graph.get_attr(f"{NAMESPACE}.{name}") for name in edit.place.routers]
            assert callable(host.target)
            host.target = in_two_runs(host.target, edit.place.shown)
            host.args = (*host.args, routers)
        case Witness():
            returning(graph, shown, edit.place.stack)
        case _:
            assert isinstance(edit.place, Carrier)  # changes the class of a block, not its graph


def in_two_runs(forward: Callable[[nn.Module, Arguments], Any], stack: str | None) -> Callable[..., Any]:
    """Returns a function that calls `forward` twice, given the routers as its last argument.

    Args:
        forward: A function of a module and its arguments by name.
        stack: Under which path a module below shows the states; None where `forward` returns them.
    """

    def run(module: nn.Module, arguments: Arguments, routers: list[Router]) -> Any:
        before = _RUN.states
        cached = arguments if arguments.get("cache") is not None else {}
        expect_one_in_each_row(cached, "a mixture of LoRAs runs twice, each time with a cache of its own")
        with parted(arguments) as firsts:
            _RUN.states = {}
            try:
                with torch.no_grad(), giving({router: router.first for router in routers}):
                    first = _unobserved(forward, module, firsts)
                states = _first_of(first) if stack is None else _RUN.states[stack]
            finally:
                _RUN.states = before
            with giving({router: router(accepted_by(router, states)) for router in routers}):
                second = forward(module, arguments)
        join_new(arguments, first, second)
        return second

    run.__name__ = run.__qualname__ = "in_two_runs"
    run.__module__ = forward.__module__
    return run


def shown(output: Any, stack: str) -> Any:
    """Returns `output`, whose first part are the last states of `stack`; a first run keeps them."""
    if _RUN.states is not None:
        _RUN.states[stack] = _first_of(output)
    return output


def _unobserved(forward: Callable[..., Any], module: nn.Module, arguments: Arguments) -> Any:
    """Calls `forward` where whoever records outputs, for the caller of the model, does not see it."""
    if torch.compiler.is_compiling():
        return forward(module, arguments)
    return contextvars.Context().run(forward, module, arguments)


def _first_of(output: Any) -> Tensor:
    """Returns the first part of what a module returned."""
    return output if isinstance(output, Tensor) else output[0]


def carrying(original: type[nn.Module]) -> Callable[..., Any]:
    """Returns a `__call__` that adds what places are given to the arguments."""

    @functools.wraps(original.__call__)
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        given = {router: value for router, value in (given_now() or {}).items() if isinstance(value, Tensor)}
        if not given:
            return original.__call__(self, *args, **kwargs)
        # Tensors by position: a reentrant checkpoint does not see those by name.
        return original.__call__(self, *args, *given.values(), **kwargs, **{CARRIED: tuple(given)})

    return call


def receiving(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `forward` after what `carrying` added to the arguments was taken off again, and given."""

    @functools.wraps(forward)
    def received(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        routers = kwargs.pop(CARRIED, None)
        if routers is None:
            return forward(self, *args, **kwargs)
        count = len(args) - len(routers)
        with giving(dict(zip(routers, args[count:], strict=True))):
            return forward(self, *args[:count], **kwargs)

    return received


def router_in(module: nn.Module) -> Router:
    """Returns the router that an inserted module asks.

    Raises:
        LoweringError: If it holds none, or several.
    """
    routers = [each for each in module.modules() if isinstance(each, Router)]
    if len(routers) != 1:
        raise LoweringError(
            f"a {type(module).__name__} holds {len(routers)} routers, expected the one that it asks"
        )
    return routers[0]
