"""Traces one container's own forward into an FX graph, with its children as leaves.

The forward runs once for real, on copies of this call's arguments, under a function mode
that writes down every op. Tensors are real, so control flow that looks at them just works;
sizes and objects are symbols, so that the graph holds for other sizes too. The same kind of
mode records the whole model while capturing, so an op is met under the same chain of
instructions in both.
"""

import functools
import operator
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (the field's name for it)
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.overrides import TorchFunctionMode, is_tensor_method_or_property

from peft_compiler.errors import LoweringError
from peft_compiler.frames import CALL_IMPL, call_chain, op_name
from peft_compiler.lowering.guards import LATE, Guard, expect_equal, expect_length, expect_none
from peft_compiler.lowering.snapshots import fingerprint, preserved, snapshot
from peft_compiler.lowering.symbols import FloatSymbol, IntSymbol, Method, ObjectSymbol, Symbol, plain_values
from peft_compiler.site import Anchor

_OPERATORS: MappingProxyType[str, Callable[..., Any]] = MappingProxyType(
    {
        **{name: getattr(operator, name) for name in ("add", "sub", "mul", "matmul", "gt", "lt", "ge", "le", "eq", "ne")},
        "div": operator.truediv,
        "__getitem__": operator.getitem,
        "__setitem__": operator.setitem,
    }
)
"""Methods that read better as operators."""

_FACTS = frozenset(
    "dtype device layout ndim requires_grad grad_fn is_leaf is_cuda is_cpu is_meta is_sparse is_nested is_quantized grad"
    " names dim ndimension is_floating_point is_complex is_signed element_size get_device data_ptr is_inference"
    " untyped_storage storage_offset __hash__ __repr__ __format__ _version".split()
)
"""What a forward may ask about a tensor that this graph's call signature settles; not recorded."""

_PLAIN = frozenset({"__bool__", "__int__", "__float__", "__index__", "__len__", "tolist", "__contains__"})
"""Where Python needs a plain value at once."""

_VARIABLE = frozenset({"unbind", "split", "tensor_split", "nonzero"})
"""Ops whose number of results may depend on sizes."""

_FREE = (torch.dtype, torch.device, torch.layout, torch.memory_format, type, FunctionType)
_LOCK = threading.RLock()


def _undispatched(function: FunctionType) -> FunctionType:
    """Returns `function` without its own hand-over to function modes, so that what it calls is seen.

    It runs the same code object, so the chain of instructions stays the same.
    """
    never = {name: lambda *_: False for name in ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")}
    opened = FunctionType(function.__code__, {**function.__globals__, **never}, function.__name__, function.__defaults__)
    opened.__kwdefaults__ = function.__kwdefaults__
    return opened


_OPENED = {F.multi_head_attention_forward: _undispatched(F.multi_head_attention_forward)}
"""Composites that hold places of their own: queries, keys and values meet within them."""


class Constant:
    """An object of the forward's surroundings that a graph cannot spell."""

    def __init__(self, value: object, index: int) -> None:
        self.value = value
        self.__name__ = self.__qualname__ = f"constant_{index}"
        self.__module__ = __name__

    def __call__(self) -> object:
        return self.value


def run_forward(forward: Callable[..., Any], root: nn.Module, args: Any, kwargs: Any) -> Any:
    """Calls `forward`; chains of instructions start below this frame."""
    return forward(root, *args, **kwargs)


_STOP = CALL_IMPL | {run_forward.__code__}


class LocalTracer(TorchFunctionMode):
    """Records one call of one container. Used once.

    Attributes:
        graph: The local graph; its placeholders are the tensors, numbers and objects among the arguments.
        arguments: Where each placeholder comes from: a position, or a keyword.
    """

    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        self.root = root
        self.graph = Graph()
        self.graph._graph_namespace.create_name("self", None)  # a child of that name would shadow the root
        self.arguments: list[int | str] = []
        self.thread = threading.get_ident()
        self.nodes: dict[int, Node] = {}
        self.alive: list[object] = []
        self.outer_storages: set[int] = set()
        self.constants: list[Constant] = []
        self.occurrences: Counter[tuple[object, str]] = Counter()
        self.suspended = False
        self.changed = False
        self.regions = self._regions()
        self.names = {id(tensor): name for name, tensor in _tensors_of(root)}

    # ------------------------------------------------------------------ the run

    def trace(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Graph:
        """Runs `forward(root, *args, **kwargs)` on copies of the arguments and returns its graph.

        Raises:
            LoweringError: If the forward does something that a graph cannot say.
        """
        args, kwargs = snapshot((args, kwargs))
        self.outer_storages = {_storage(tensor) for _, tensor in _tensors_of(self.root)}
        names = _argument_names(forward, len(args))
        positional = [self.argument(name, index, value) for index, (name, value) in enumerate(zip(names, args, strict=True))]
        keywords = {name: self.argument(name, name, value) for name, value in kwargs.items()}
        with _LOCK, preserved(self.root), self.children_as_leaves(), self:
            result = run_forward(forward, self.root, positional, keywords)
        self.graph.output(self.to_node(result))
        return self.graph

    def argument(self, name: str, place: int | str, value: Any) -> Any:
        """Returns what the forward sees for one argument; settled values get no placeholder."""
        if value is None or isinstance(value, (bool, str, *_FREE)):
            return value
        node = self.graph.placeholder(name)
        self.arguments.append(place)
        self.outer_storages.update(_storage(tensor) for tensor in _flat_tensors(value))
        return self.wrap(node, value, settled=True)

    @contextmanager
    def children_as_leaves(self) -> Iterator[None]:
        """While it lasts, a call of any module below the root becomes one node."""
        children = [(name, module) for name, module in self.root.named_modules() if module is not self.root]
        before = [(module, module.__dict__.get("_compiled_call_impl")) for _, module in children]
        for name, module in children:
            module.__dict__["_compiled_call_impl"] = functools.partial(self.call_child, name, module)
        try:
            yield
        finally:
            for module, compiled in before:
                module.__dict__.pop("_compiled_call_impl")
                if compiled is not None:
                    module.__dict__["_compiled_call_impl"] = compiled

    def call_child(self, name: str, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Stands in for the call of a child. Hooks stay outside: they fire when the graph is run."""
        if threading.get_ident() != self.thread:
            return module._call_impl(*args, **kwargs)
        if self.suspended:
            return module.forward(*args, **kwargs)
        node = self.graph.call_module(name, *self.to_node((args, kwargs)))
        return self.finish(node, module.forward, args, kwargs, stateful=True)

    # ------------------------------------------------------------------ ops

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if self.suspended or threading.get_ident() != self.thread:
            return func(*args, **kwargs)
        if func in _OPENED:
            with self:
                return _OPENED[func](*args, **kwargs)
        if name == "__get__":
            return self.read(func.__self__.__name__, args[0])
        if name == "__set__":
            return self.call(setattr, args[0], func.__self__.__name__, args[1])
        if name in _FACTS or name == "_set_grad_enabled":
            return func(*plain_values(args), **plain_values(kwargs))
        if name == "__iter__":
            return iter(self.record("unbind", torch.Tensor.unbind, (args[0], 0), {}))
        if name in _PLAIN:
            return self.read_plain(name, args)
        return self.record(name, func, args, kwargs)

    def read(self, attribute: str, tensor: Tensor) -> Any:
        """A property of a tensor."""
        if attribute in _FACTS:
            return getattr(tensor, attribute)
        return self.call(getattr, tensor, attribute)

    def read_plain(self, name: str, args: tuple[Any, ...]) -> Any:
        """A value that Python branches on: the graph holds for this one alone."""
        function = {"__bool__": bool, "__int__": int, "__float__": float, "__index__": operator.index, "__len__": len}.get(name)
        if function is None:
            function = operator.contains if name == "__contains__" else torch.Tensor.tolist
        node = self.graph.call_function(function, self.to_node(args))
        value = self.quietly(function, plain_values(args), {})
        self.guard_equal(node, value)
        return value

    def record(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One op becomes one node that carries its anchor."""
        if self._regions() != self.regions:
            raise LoweringError(f"{self.where()} changes autocast or gradient mode within its forward, which a graph cannot say")
        if name in _OPERATORS and len(args) == 2 and not kwargs and is_tensor_method_or_property(func):
            node = self.graph.call_function(_OPERATORS[name], self.to_node(args))
        elif is_tensor_method_or_property(func):
            node = self.graph.call_method(name, self.to_node(args), self.to_node(kwargs))
        else:
            node = self.graph.call_function(func, self.to_node(args), self.to_node(kwargs))
        frames = call_chain(sys._getframe(1), _STOP)
        op = op_name(func)
        node.meta["anchor"] = Anchor(frames, op, self.occurrences[frames, op])
        self.occurrences[frames, op] += 1
        self.note_change(name, args, kwargs)
        return self.finish(node, func, args, kwargs, countable=name in _VARIABLE)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """A Python function of symbols or tensors, such as `operator.add`, becomes one node."""
        node = self.graph.call_function(function, self.to_node(args))
        if function is setattr or function is operator.setitem:
            self.changed = True
        return self.finish(node, function, args, {})

    def call_method(self, name: str, symbol: Symbol, *args: Any, **kwargs: Any) -> Any:
        """A method of an object, such as the update of a cache, becomes one node."""
        node = self.graph.call_method(name, *self.to_node(((symbol, *args), kwargs)))
        return self.finish(node, getattr(symbol.value, name), args, kwargs, stateful=True, owner=symbol.value)

    # ------------------------------------------------------------------ values

    def finish(
        self,
        node: Node,
        function: Callable[..., Any],
        args: Any,
        kwargs: Any,
        stateful: bool = False,
        countable: bool = False,
        owner: object = None,
    ) -> Any:
        """Computes what `node` stands for and returns what the forward sees of it."""
        values = plain_values((args, kwargs))
        watched = (owner, *(a for a in (*values[0], *values[1].values()) if not isinstance(a, Tensor))) if stateful else ()
        before = fingerprint(watched)
        result = self.quietly(function, *values)
        if stateful and fingerprint(watched) != before:
            self.changed = True
        return self.wrap(node, result, countable=stateful or countable)

    def quietly(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Runs `function` without recording what it does."""
        self.suspended = True
        try:
            return function(*args, **kwargs)
        finally:
            self.suspended = False

    def wrap(self, node: Node, value: Any, countable: bool = False, settled: bool = False) -> Any:
        """Returns what the forward sees of `node`: tensors as they are, numbers and objects as symbols.

        Args:
            countable: The number of items may differ from call to call.
            settled: The call signature fixes the structure, so no guard is needed.
        """
        self.alive.append(value)
        if isinstance(value, Tensor):
            self.nodes[id(value)] = node
            node.meta.setdefault("shape", tuple(value.shape))
            node.meta.setdefault("dtype", value.dtype)
            return value
        if value is None or isinstance(value, (bool, str)):
            if not settled:
                self.guard_equal(node, value)
            return value
        if isinstance(value, _FREE) or value is NotImplemented:
            return value
        if isinstance(value, (list, tuple)) and type(value).__module__ in ("builtins", "torch", "torch.return_types"):
            if countable:
                self.guard(expect_length, node, len(value))
            items = [self.wrap(self.graph.call_function(operator.getitem, (node, i)), v, countable, settled) for i, v in enumerate(value)]
            return items if isinstance(value, list) else Sizes(items) if isinstance(value, torch.Size) else _like(value, items)
        if type(value) is dict:
            return {k: self.wrap(self.graph.call_function(operator.getitem, (node, k)), v, countable, settled) for k, v in value.items()}
        kind = IntSymbol if isinstance(value, int) else FloatSymbol if isinstance(value, float) else ObjectSymbol
        return kind(node, value, self)

    def to_node(self, value: Any) -> Any:
        """Returns `value` as an argument of a node: symbols and tensors become the nodes that compute them."""
        kind = type(value)
        if issubclass(kind, Symbol):
            return value.node
        if kind is Method:
            return self.graph.call_function(getattr, (value.symbol.node, value.name))
        if isinstance(value, Tensor):
            return self.tensor_node(value)
        if value is None or value is ... or isinstance(value, (bool, int, float, str, complex, torch.dtype, torch.device, torch.layout, torch.memory_format)):
            return value
        if kind is slice:
            return slice(*(self.to_node(part) for part in (value.start, value.stop, value.step)))
        if kind is tuple or kind is list or kind is Sizes:
            items = [self.to_node(item) for item in value]
            return items if kind is list else tuple(items)
        if isinstance(value, tuple):
            items = [self.to_node(item) for item in value]
            return self.graph.call_function(kind, tuple(items) if hasattr(kind, "_fields") else (tuple(items),))
        if isinstance(value, dict):
            entries = {key: self.to_node(item) for key, item in value.items()}
            return entries if kind is dict else self.graph.call_function(kind, (), entries)
        return self.surrounding(value)

    def tensor_node(self, tensor: Tensor) -> Node:
        node = self.nodes.get(id(tensor))
        if node is None:
            name = self.names.get(id(tensor))
            node = self.graph.get_attr(name) if name is not None else self.surrounding(tensor)
            node.meta["shape"], node.meta["dtype"] = tuple(tensor.shape), tensor.dtype
            self.nodes[id(tensor)] = node
        return node

    def surrounding(self, value: object) -> Node:
        """Something that is no argument and no parameter: a module below the root, or a constant."""
        for name, module in self.root.named_modules():
            if module is value and module is not self.root:
                return self.graph.get_attr(name)
        if isinstance(value, Tensor) and value.numel() > 1:
            raise LoweringError(f"{self.where()} uses a tensor of unknown origin, of shape {tuple(value.shape)}")
        if not isinstance(value, Tensor) and not callable(value) and not type(value).__module__.startswith("torch"):
            raise LoweringError(f"{self.where()} makes a {type(value).__name__} within its forward and hands it on")
        constant = next((known for known in self.constants if known.value is value), None)
        if constant is None:
            constant = Constant(value, len(self.constants))
            self.constants.append(constant)
        return self.graph.call_function(constant)

    # ------------------------------------------------------------------ guards

    def guard_equal(self, node: Node, value: Any) -> None:
        """Records that the graph holds only while `node` gives `value`."""
        if value is None:
            self.guard(expect_none, node)
        else:
            self.guard(expect_equal, node, value)

    def guard(self, guard: Guard, *args: Any) -> None:
        self.graph.call_function(LATE[guard] if self.changed else guard, args)

    def note_change(self, name: str, args: Any, kwargs: Any) -> None:
        """A write into something that outlives the call: a guard that fails after it cannot start anew."""
        in_place = name == "__setitem__" or (name.endswith("_") and not name.startswith("__")) or "out" in kwargs
        if in_place and any(_storage(tensor) in self.outer_storages for tensor in _flat_tensors(args[:1])):
            self.changed = True

    def where(self) -> str:
        return type(self.root).__name__

    def _regions(self) -> tuple[object, ...]:
        return torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")


class Sizes(tuple[Any, ...]):
    """What a forward sees of a shape: its sizes as symbols."""

    def numel(self) -> Any:
        """Product of the sizes."""
        return functools.reduce(operator.mul, self, 1)


def _like(value: tuple[Any, ...], items: list[Any]) -> tuple[Any, ...]:
    return tuple(items) if type(value) is tuple else type(value)(items)


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage()._cdata
    except NotImplementedError:  # tensors without a storage of their own, such as some subclasses
        return id(tensor)


def _flat_tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _flat_tensors(item)]
    return []


def _tensors_of(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields parameters, buffers and plain tensor attributes at or below `root`."""
    for prefix, module in root.named_modules():
        for store in (module._parameters, module._buffers, module.__dict__):
            for name, value in store.items():
                if isinstance(value, Tensor):
                    yield f"{prefix}.{name}" if prefix else name, value


def _argument_names(forward: Callable[..., Any], count: int) -> list[str]:
    import inspect

    names = list(inspect.signature(forward).parameters)[1:]
    return [names[i] if i < len(names) else f"argument_{i}" for i in range(count)]
