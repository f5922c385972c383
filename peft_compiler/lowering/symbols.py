"""Symbols: the values of a forward that are not tensors, while it is traced.

A symbol carries the concrete value of this call and the node that computes it. It behaves
like the value; where Python needs a plain one (a branch, a `range`), the tracer records a
guard. Tensors need no symbol: a function mode sees every op on them.
"""

import operator
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from types import BuiltinMethodType, MethodType, MethodWrapperType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from peft_compiler.errors import LoweringError

if TYPE_CHECKING:
    from peft_compiler.lowering.trace import LocalTracer


class Symbol:
    """A value and its node. Subclasses differ in what torch's argument parser must take them for."""

    node: Node
    value: Any
    tracer: "LocalTracer"

    def __init__(self, node: Node, value: Any, tracer: "LocalTracer") -> None:
        # Not setattr: on a symbol that means setting an attribute of the value.
        object.__setattr__(self, "node", node)
        object.__setattr__(self, "value", value)
        object.__setattr__(self, "tracer", tracer)

    @property
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        # So that isinstance() answers for the value. Never for tensors: C++ would believe it.
        return type(self.value)

    def plain(self) -> Any:
        """Returns the value, and records that this graph holds for it alone."""
        self.tracer.guard_equal(self.node, self.value)
        return self.value

    def __bool__(self) -> bool:
        return self.tracer.call(bool, self)

    def __hash__(self) -> int:
        return hash(self.plain())

    def __index__(self) -> int:
        return operator.index(self.plain())

    def __int__(self) -> int:
        return int(self.plain())

    def __float__(self) -> float:
        return float(self.plain())

    def __repr__(self) -> str:
        return repr(self.value)

    def __format__(self, spec: str) -> str:
        return format(self.value, spec)

    def __deepcopy__(self, memo: object) -> "Symbol":
        return self

    def __len__(self) -> int:
        return self.tracer.call(len, self).plain()

    def __iter__(self) -> Iterator[Any]:
        return iter([self[index] for index in range(len(self))])

    def __contains__(self, item: object) -> bool:
        return self.tracer.call(operator.contains, self, item)

    def __getitem__(self, key: Any) -> Any:
        return self.tracer.call(operator.getitem, self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.call(operator.setitem, self, key, value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # torch and copy ask every object for __torch_function__ and the like
            raise AttributeError(name)
        attribute = getattr(self.value, name)
        bound = isinstance(attribute, MethodType | BuiltinMethodType | MethodWrapperType)
        if bound and attribute.__self__ is self.value:
            return Method(self, name)
        return self.tracer.call(getattr, self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.tracer.call(setattr, self, name, value)


class Method:
    """A bound method of a symbol's value; calling it becomes one node."""

    def __init__(self, symbol: Symbol, name: str) -> None:
        self.symbol, self.name = symbol, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Records the call and returns what the forward sees of its result."""
        return self.symbol.tracer.call_method(self.name, self.symbol, *args, **kwargs)


class IntSymbol(Symbol, torch.SymInt):
    """A whole number, such as a size. A `SymInt`, because torch does not turn those into plain ones early."""

    __init__ = Symbol.__init__


class FloatSymbol(Symbol, torch.SymFloat):
    """A floating-point number."""

    __init__ = Symbol.__init__


class ObjectSymbol(Symbol):
    """Anything else, such as a cache; its attributes and methods become nodes."""


def _binary(function: Callable[[Any, Any], Any]) -> Callable[[Symbol, Any], Any]:
    def method(self: Symbol, other: Any) -> Any:
        if isinstance(other, torch.Tensor):
            return NotImplemented  # the tensor's own operator comes next, and the function mode sees it
        return self.tracer.call(function, self, other)

    return method


def _reflected(function: Callable[[Any, Any], Any]) -> Callable[[Symbol, Any], Any]:
    def method(self: Symbol, other: Any) -> Any:
        return self.tracer.call(function, other, self)

    return method


def _unary(function: Callable[[Any], Any]) -> Callable[[Symbol], Any]:
    def method(self: Symbol) -> Any:
        return self.tracer.call(function, self)

    return method


_ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and_", "or_", "xor")
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
_UNARY = ("neg", "pos", "abs", "invert")


def _give_operators(cls: type[Symbol]) -> None:
    # On each class itself: torch.SymInt defines operators of its own, which would come first.
    for name in (*_ARITHMETIC, *_COMPARISONS):
        setattr(cls, f"__{name.rstrip('_')}__", _binary(getattr(operator, name)))
    for name in _ARITHMETIC:
        setattr(cls, f"__r{name.rstrip('_')}__", _reflected(getattr(operator, name)))
    for name in _UNARY:
        setattr(cls, f"__{name}__", _unary(getattr(operator, name)))


for _symbol_class in (IntSymbol, FloatSymbol, ObjectSymbol):
    _give_operators(_symbol_class)
    # Defining __eq__ through setattr keeps __hash__, but SymInt's own comes before Symbol's without this.
    _symbol_class.__hash__ = Symbol.__hash__


def plain_values(value: Any) -> Any:
    """Returns `value` with every symbol in it, at any depth, replaced by its concrete value."""
    kind = type(value)
    if issubclass(kind, Symbol):
        return value.value
    if kind is Method:
        return getattr(value.symbol.value, value.name)
    if kind is slice:
        return slice(*(plain_values(part) for part in (value.start, value.stop, value.step)))
    if issubclass(kind, tuple):
        items = [plain_values(item) for item in value]
        return (
            kind(*items)
            if hasattr(kind, "_fields")
            else (tuple(items) if kind.__module__ != "torch" else kind(items))
        )
    if kind is list:
        return [plain_values(item) for item in value]
    if issubclass(kind, dict) and hasattr(
        kind, "to_tuple"
    ):  # transformers' ModelOutput: a dict made by keywords
        return kind(**{key: plain_values(item) for key, item in value.items()})
    if issubclass(kind, dict):
        return kind((key, plain_values(item)) for key, item in value.items())
    return value


def _is_table(name: str, value: Any) -> bool:
    """Whether a value that a module holds is a dict of tensors of its own making."""
    if type(value) is not dict or name in ("_parameters", "_buffers"):
        return False
    return any(isinstance(each, Tensor) for each in value.values())  # pyright: ignore[reportUnknownVariableType]


@contextmanager
def plain_attributes(module: nn.Module) -> Generator[None]:
    """Makes plain at the end what a forward kept on its module: symbols mean nothing in another graph.

    Tables of tensors that a forward computes once and keeps are empty meanwhile, so that the
    graph computes them, and as they were at the end.

    Raises:
        LoweringError: If the forward reads such a table and does not fill it.
    """
    before = dict(vars(module))
    tables = [(table, dict(table)) for name, table in before.items() if _is_table(name, table)]
    for table, _ in tables:
        table.clear()
    try:
        yield
    except KeyError as error:
        if not tables:
            raise
        raise LoweringError(
            f"{type(module).__name__} reads a table of tensors that its forward does not fill: "
            "keep them as buffers"
        ) from error
    finally:
        for table, entries in tables:
            table.clear()
            table.update(entries)
        for name, value in vars(module).items():
            if name not in before or before[name] is not value:
                vars(module)[name] = plain_values(value)
