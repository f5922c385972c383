"""Ties the values of a traced run to the nodes that compute them, both ways."""

import functools
import operator
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from peft_compiler.errors import LoweringError
from peft_compiler.lowering.guards import expect_length
from peft_compiler.lowering.made import Making, is_made, unwatch, watch
from peft_compiler.lowering.symbols import FloatSymbol, IntSymbol, Method, ObjectSymbol, Symbol
from peft_compiler.lowering.written import Written

if TYPE_CHECKING:
    from peft_compiler.lowering.trace import LocalTracer

SETTLED = (torch.dtype, torch.device, torch.layout, torch.memory_format, type, FunctionType)
"""Values that the signature of a call settles: the forward sees them as they are."""

_SPELT = (bool, int, float, str, complex, torch.dtype, torch.device, torch.layout, torch.memory_format)
"""Values that a graph can spell."""


class Constant:
    """An object of the forward's surroundings that a graph cannot spell."""

    def __init__(self, value: object, index: int) -> None:
        self.value = value
        self.__name__ = self.__qualname__ = f"constant_{index}"
        self.__module__ = __name__

    def __call__(self) -> object:
        """Returns the object."""
        return self.value


class Sizes(tuple[Any, ...]):
    """What a forward sees of a shape: its sizes as symbols."""

    def numel(self) -> Any:
        """Product of the sizes."""
        return functools.reduce(operator.mul, self, 1)


class ValueMap:
    """Which node computes which value of one traced run."""

    def __init__(self, graph: Graph, root: nn.Module, tracer: "LocalTracer") -> None:
        self.graph, self.root, self.tracer = graph, root, tracer
        self.nodes: dict[int, Node] = {}
        self.alive: list[object] = []  # an id is an identity only as long as its object lives
        self.names = {id(tensor): name for name, tensor in tensors_of(root)}
        self.sizes_of: dict[Node, Sizes] = {}
        self.constants: list[Constant] = []
        self.made: list[object] = []
        self.written = Written(self)

    def shown(self, node: Node, value: Any, countable: bool = False, settled: bool = False) -> Any:
        """Returns what the forward sees of `node`: tensors as they are, numbers and objects as symbols.

        Args:
            node: The node that computes `value`.
            value: What it computes in this run.
            countable: The number of items may differ from call to call.
            settled: The signature of the call fixes the structure, so no guard is needed.
        """
        self.alive.append(value)
        if isinstance(value, Tensor):
            self.nodes[id(value)] = node
            node.meta.setdefault("shape", tuple(value.shape))
            node.meta.setdefault("dtype", value.dtype)
            return value
        if value is None or isinstance(value, bool | str):
            if not settled:
                self.tracer.guard_equal(node, value)
            return value
        if isinstance(value, SETTLED) or value is NotImplemented:
            return value
        if isinstance(value, list | tuple) and type(value).__module__ in (
            "builtins",
            "torch",
            "torch.return_types",
        ):
            if countable:
                self.tracer.guard(expect_length, node, len(value))
            items = [self.item(node, index, item, countable, settled) for index, item in enumerate(value)]
            return self.written.noted(node, _rebuilt(value, items)) if settled else _rebuilt(value, items)
        # A dict that an object holds may be written to, as where a cache notes what is in it.
        if type(value) is dict and node.target is not getattr:
            entries = {key: self.item(node, key, item, countable, settled) for key, item in value.items()}
            return self.written.noted(node, entries) if settled else entries
        kind = (
            IntSymbol if isinstance(value, int) else FloatSymbol if isinstance(value, float) else ObjectSymbol
        )
        return kind(node, value, self.tracer)

    def item(self, node: Node, key: Any, item: Any, countable: bool = False, settled: bool = False) -> Any:
        """Returns what the forward sees of an item of what `node` gives."""
        return self.shown(self.graph.call_function(operator.getitem, (node, key)), item, countable, settled)

    def finish(self, result: Any) -> None:
        """Lets the graph return `result`, after what the forward wrote to containers that it was given."""
        self.written.finish()
        self.graph.output(self.node_of(result))

    def sizes(self, tensor: Tensor) -> "Sizes":
        """Returns the sizes of `tensor` as symbols, the same ones each time it is asked."""
        node = self._tensor(tensor)
        if node not in self.sizes_of:
            reads = [self.graph.call_method("size", (node, axis)) for axis in range(tensor.dim())]
            self.sizes_of[node] = Sizes(map(self.shown, reads, tensor.shape))
        return self.sizes_of[node]

    def node_of(self, value: Any) -> Any:
        """Returns `value` as an argument of a node: symbols and tensors become their nodes."""
        kind = type(value)
        if issubclass(kind, Symbol):
            return value.node
        if kind is Method:
            return self.graph.call_function(getattr, (value.symbol.node, value.name))
        if isinstance(value, Tensor):
            return self._tensor(value)
        if value is None or value is ... or isinstance(value, _SPELT):
            return value
        if kind is slice:
            return slice(*(self.node_of(part) for part in (value.start, value.stop, value.step)))
        if isinstance(value, list | tuple):
            items = [self.node_of(item) for item in value]
            if kind in (list, tuple, Sizes):
                return items if kind is list else tuple(items)
            return self.graph.call_function(
                kind, tuple(items) if hasattr(kind, "_fields") else (tuple(items),)
            )
        if isinstance(value, dict):
            entries = {key: self.node_of(item) for key, item in value.items()}
            return entries if kind is dict else self.graph.call_function(kind, (), entries)
        made = any(value is each for each in self.made)
        return self.nodes[id(value)] if made else self._surrounding(value)

    def _tensor(self, tensor: Tensor) -> Node:
        node = self.nodes.get(id(tensor))
        if node is None:
            name = self.names.get(id(tensor))
            node = self.graph.get_attr(name) if name is not None else self._surrounding(tensor)
            self.shown(node, tensor)
        return node

    def _surrounding(self, value: object) -> Node:
        """Something that is no argument and no parameter: a module below the root, or a constant."""
        for name, module in self.root.named_modules():
            if module is value and module is not self.root:
                return self.graph.get_attr(name)
        where = type(self.root).__name__
        if isinstance(value, Tensor) and value.numel() > 1:
            raise LoweringError(f"{where} uses a tensor of unknown origin, of shape {tuple(value.shape)}")
        if (
            not isinstance(value, Tensor)
            and not callable(value)
            and not type(value).__module__.startswith("torch")
        ):
            if not is_made(value, self.nodes):
                raise LoweringError(
                    f"{where} hands on a {type(value).__name__} that is neither among its arguments nor made "
                    "anew by itself from nothing of this call"
                )
            return self._made(value)
        constant = next((known for known in self.constants if known.value is value), None)
        if constant is None:
            constant = Constant(value, len(self.constants))
            self.constants.append(constant)
        return self.graph.call_function(constant)

    def _made(self, value: object) -> Node:
        node = self.graph.call_function(Making(value, len(self.made)))
        self.nodes[id(value)] = node
        self.made.append(value)
        watch(node, value, self.tracer)
        return node

    @contextmanager
    def watched(self) -> Generator[None]:
        """At its end, objects that the forward made are watched no longer."""
        try:
            yield
        finally:
            for value in self.made:
                unwatch(value)


def tensors_of(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields parameters, buffers and plain tensor attributes at or below `root`, by name."""
    for prefix, module in root.named_modules():
        own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        for name, value in (*own, *vars(module).items()):
            if isinstance(value, Tensor):
                yield f"{prefix}.{name}" if prefix else name, value


def _rebuilt(value: list[Any] | tuple[Any, ...], items: list[Any]) -> Any:
    if isinstance(value, list):
        return items
    if isinstance(value, torch.Size):
        return Sizes(items)
    make: Callable[[list[Any]], Any] = type(value)
    return make(items)
