"""Traces one container's own forward into an FX graph, with its children as leaves.

The forward runs once for real, on copies of this call's arguments, under a function mode
that writes down every op. Tensors are real, so control flow that looks at them just works;
sizes and objects are symbols, so that the graph holds for other sizes too. The same kind of
mode records the whole model while capturing, so an op is met under the same chain of
instructions in both.
"""

import functools
import inspect
import operator
import threading
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.overrides import TorchFunctionMode, is_tensor_method_or_property

from peft_compiler.errors import LoweringError
from peft_compiler.frames import CALL_IMPL, OPENED, call_chain, op_name
from peft_compiler.lowering.guards import LATE, Guard, expect_kind, expect_regions, guard_of, regions
from peft_compiler.lowering.signature import argument_names
from peft_compiler.lowering.snapshots import fingerprint, flat_tensors, preserved, snapshot, storage_of
from peft_compiler.lowering.symbols import Symbol, plain_attributes, plain_values
from peft_compiler.lowering.values import SETTLED, ValueMap, tensors_of
from peft_compiler.site import Anchor

_OPERATORS: MappingProxyType[str, Callable[..., Any]] = MappingProxyType(
    {
        name: getattr(operator, name)
        for name in ("add", "sub", "mul", "matmul", "gt", "lt", "ge", "le", "eq", "ne")
    }
    | {"div": operator.truediv, "__getitem__": operator.getitem, "__setitem__": operator.setitem}
)
"""Methods that read better as operators."""

_FACTS = frozenset(
    {"dtype", "device", "layout", "ndim", "dim", "ndimension", "names", "element_size", "get_device"}
    | {"is_cuda", "is_cpu", "is_meta", "is_sparse", "is_nested", "is_quantized", "is_inference", "is_leaf"}
    | {"is_floating_point", "is_complex", "is_signed", "requires_grad", "grad", "grad_fn", "_version"}
    | {
        "data_ptr",
        "storage_offset",
        "untyped_storage",
        "__hash__",
        "__repr__",
        "__format__",
        "_set_grad_enabled",
    }
)
"""What a forward may ask about a tensor that the signature of the call settles; not recorded."""

_PLAIN: MappingProxyType[str, Callable[..., Any]] = MappingProxyType(
    {"__bool__": bool, "__int__": int, "__float__": float, "__index__": operator.index, "__len__": len}
    | {"tolist": Tensor.tolist, "__contains__": operator.contains}
)
"""Where Python needs a plain value of a tensor at once."""

_VARIABLE = frozenset({"unbind", "split", "tensor_split", "nonzero"})
"""Ops whose number of results may depend on sizes."""

_LOCK = threading.RLock()


def run_forward(forward: Callable[..., Any], root: nn.Module, args: Any, kwargs: Any) -> Any:
    """Calls `forward`; chains of instructions start below this frame."""
    return forward(root, *args, **kwargs)


_STOP = CALL_IMPL | {run_forward.__code__}


class LocalTracer(TorchFunctionMode):
    """Records one call of one container. Used once.

    Attributes:
        opened: The modules below the root that are no leaves: the graph goes on into their forwards.
        graph: The local graph; its placeholders are the tensors, numbers and objects among the arguments.
        arguments: Where each placeholder comes from: a position, or a keyword.
    """

    def __init__(self, root: nn.Module, opened: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self.root, self.opened, self.within = root, opened, ""
        self.graph = Graph()
        # A child of that name would shadow the root.
        self.graph._graph_namespace.create_name("self", None)  # pyright: ignore[reportPrivateUsage]
        self.arguments: list[int | str] = []
        self.values = ValueMap(self.graph, root, self)
        self.outer_storages = {storage_of(tensor) for _, tensor in tensors_of(root)}
        self.occurrences: Counter[tuple[object, str, str]] = Counter()
        self.thread = threading.get_ident()
        self.suspended = False
        self.changed = False
        self.regions = regions()

    # ------------------------------------------------------------------ the run

    def trace(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Graph:
        """Runs `forward(root, *args, **kwargs)` on copies of the arguments and returns its graph.

        Raises:
            LoweringError: If the forward does something that a graph cannot say.
        """
        args, kwargs = snapshot((args, kwargs))
        named = [*enumerate(args), *kwargs.items()]
        names = [*argument_names(forward, len(args)), *kwargs]
        nodes = [self._placeholder(name, *item) for name, item in zip(names, named, strict=True)]
        seen = [
            value if node is None else self.values.shown(node, value, settled=True)
            for node, (_, value) in zip(nodes, named, strict=True)
        ]
        positional, keywords = seen[: len(args)], dict(zip(kwargs, seen[len(args) :], strict=True))
        # Who counts what is saved for the backward pass, as checkpointing does, is not to see this run.
        unseen = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
        kept = plain_attributes(self.root)
        with _LOCK, self.values.watched():
            with preserved(self.root), kept, unseen, self._children_as_leaves(), self:
                result = run_forward(forward, self.root, positional, keywords)
            self.values.finish(result)
        return self.graph

    def _placeholder(self, name: str, place: int | str, value: Any) -> Node | None:
        """Returns the placeholder of one argument; a value that the signature settles needs none."""
        if value is None or isinstance(value, (bool, str, *SETTLED)):
            return None
        self.arguments.append(place)
        self.outer_storages.update(storage_of(tensor) for tensor in flat_tensors(value))
        return self.graph.placeholder(name)

    @contextmanager
    def _children_as_leaves(self) -> Generator[None]:
        """While it lasts, a call of any module below the root becomes one node."""
        children = [(name, module) for name, module in self.root.named_modules() if module is not self.root]
        before = [(module, module.__dict__.get("_compiled_call_impl")) for _, module in children]
        for name, module in children:
            # Where nn.Module itself looks for another way to be called.
            module.__dict__["_compiled_call_impl"] = functools.partial(self._call_child, name, module)
        try:
            yield
        finally:
            for module, compiled in before:
                del module.__dict__["_compiled_call_impl"]
                if compiled is not None:
                    module.__dict__["_compiled_call_impl"] = compiled

    def _call_child(self, name: str, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Stands in for the call of a child. Hooks stay outside: they fire when the graph is run."""
        if threading.get_ident() != self.thread:
            return module._call_impl(*args, **kwargs)  # pyright: ignore[reportPrivateUsage]
        if self.suspended:
            return module.forward(*args, **kwargs)
        if name in self.opened:
            return self._go_into(name, module, args, kwargs)
        expect_regions(self.regions, type(self.root).__name__)
        node = self.graph.call_module(name, *self.values.node_of((args, kwargs)))
        return self._stateful(node, module.forward, args, kwargs)

    def _go_into(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs the forward of an opened module as part of the root's."""
        own, rewriting = module.__dict__, module.__dict__.get("rewriting")
        if own["_forward_hooks"] or own["_forward_pre_hooks"] or (rewriting and rewriting.edits):
            raise LoweringError(
                f"the graph of {type(self.root).__name__} goes on into its {name}, which has hooks or "
                "insertions of its own: remove the hooks, or choose one of the two places"
            )
        original = getattr(type(module), "original", None) if rewriting else None
        outside, self.within = self.within, name
        try:
            return run_forward((original or type(module)).forward, module, args, kwargs)
        finally:
            self.within = outside

    # ------------------------------------------------------------------ ops

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if self.suspended or threading.get_ident() != self.thread:
            return func(*args, **kwargs)
        if func in OPENED:
            with self:
                return OPENED[func](*args, **kwargs)
        if name == "__get__":
            return self._read(args[0], func.__self__.__name__)
        if name == "__set__":
            return self.call(setattr, args[0], func.__self__.__name__, args[1])
        if name in _FACTS:
            return func(*plain_values(args), **plain_values(kwargs))
        if name == "__iter__":
            return iter(self._record("unbind", Tensor.unbind, (args[0], 0), {}))
        if name in _PLAIN:
            return self._read_plain(_PLAIN[name], args)
        if name == "size":
            sizes = self.values.sizes(args[0])
            return sizes[plain_values((*args, *kwargs.values())[1])] if len(args) + len(kwargs) > 1 else sizes
        return self._record(name, func, args, kwargs)

    def _read(self, tensor: Tensor, attribute: str) -> Any:
        """A property of a tensor."""
        if attribute == "shape":
            return self.values.sizes(tensor)
        return getattr(tensor, attribute) if attribute in _FACTS else self.call(getattr, tensor, attribute)

    def _record(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One op becomes one node that carries its anchor."""
        expect_regions(self.regions, type(self.root).__name__)
        nodes, keywords = self.values.node_of((args, kwargs))
        # Methods that are written in Python are not in torch's own list.
        if not is_tensor_method_or_property(func) and getattr(Tensor, name, None) is not func:
            node = self.graph.call_function(func, nodes, keywords)
        elif name in _OPERATORS and len(args) == (3 if name == "__setitem__" else 2) and not kwargs:
            node = self.graph.call_function(_OPERATORS[name], nodes)
        else:
            node = self.graph.call_method(name, nodes, keywords)
        frames, op = call_chain(inspect.currentframe(), _STOP), op_name(func)
        key = frames, op, self.within
        node.meta["anchor"] = Anchor(frames, op, self.occurrences[key], self.within)
        self.occurrences[key] += 1
        self._note_change(name, args, kwargs)
        result = self._quietly(func, *plain_values((args, kwargs)))
        return None if name == "__setitem__" else self.values.shown(node, result, countable=name in _VARIABLE)

    def _read_plain(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """A value that Python branches on: the graph holds for this one alone."""
        node = self.graph.call_function(function, self.values.node_of(args))
        value = self._quietly(function, plain_values(args), {})
        self.guard_equal(node, value)
        return value

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """A Python function of symbols or tensors, such as `operator.add`, becomes one node."""
        node = self.graph.call_function(function, self.values.node_of(args))
        result = self._quietly(function, plain_values(args), {})
        if function in (setattr, operator.setitem):
            self.changed = True
            return None
        return self.values.shown(node, result)

    def call_method(self, name: str, symbol: Symbol, *args: Any, **kwargs: Any) -> Any:
        """A method of an object, such as the update of a cache, becomes one node."""
        node = self.graph.call_method(name, *self.values.node_of(((symbol, *args), kwargs)))
        method = self._quietly(getattr, (symbol.value, name), {})
        result = self._stateful(node, method, args, kwargs, owner=symbol.value)
        if isinstance(result, Tensor | int):
            self.guard(expect_kind, node, isinstance(result, Tensor))
        return result

    def _stateful(
        self, node: Node, function: Callable[..., Any], args: Any, kwargs: Any, owner: object = None
    ) -> Any:
        """Runs something that may write into the objects given to it, and notes whether it did."""
        given = args, kwargs
        args, kwargs = plain_values(given)
        objects = (owner, *(value for value in (*args, *kwargs.values()) if not isinstance(value, Tensor)))
        before = fingerprint(objects)
        with self.values.written.below(node, given, (args, kwargs)):
            result = self._quietly(function, args, kwargs)
        self.changed = self.changed or fingerprint(objects) != before
        return self.values.shown(node, result, countable=True)

    def _quietly(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Runs `function` without recording what it does."""
        self.suspended = True
        try:
            return function(*args, **kwargs)
        finally:
            self.suspended = False

    # ------------------------------------------------------------------ guards

    def guard_equal(self, node: Node, value: Any) -> None:
        """Records that the graph holds only while `node` gives `value`."""
        guard, *expected = guard_of(value)
        self.guard(guard, node, *expected)

    def guard(self, guard: Guard, *args: Any) -> None:
        """Records a guard, in its late form once something was changed."""
        self.graph.call_function(LATE[guard] if self.changed else guard, args)

    def _note_change(self, name: str, args: Any, kwargs: Any) -> None:
        """A write into something that outlives the call: a guard that fails after it cannot start anew."""
        in_place = (
            name == "__setitem__" or (name.endswith("_") and not name.startswith("__")) or "out" in kwargs
        )
        if in_place and any(storage_of(tensor) in self.outer_storages for tensor in flat_tensors(args[:1])):
            self.changed = True
