"""Objects that a forward makes itself, such as a cache that nobody gave it.

Such an object is met when it is first handed on. The graph makes one like it at every call,
from a copy of what it was then; from then on, what the forward reads of it or writes to it
becomes nodes, as for an object among the arguments.
"""

import gc
import threading
from collections.abc import Iterator, Mapping
from types import CellType, FrameType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from peft_compiler.lowering.snapshots import parts_of, snapshot
from peft_compiler.lowering.symbols import Method, ObjectSymbol, Symbol

if TYPE_CHECKING:
    from torch.fx import Node

    from peft_compiler.lowering.trace import LocalTracer


_PASSING = (tuple, list, dict, CellType, Iterator)
"""What holds the arguments and variables of running functions, while they run."""


class Making:
    """Makes objects like one that a forward made."""

    def __init__(self, value: object, index: int) -> None:
        self.pattern = snapshot(value)
        self.__name__ = self.__qualname__ = f"make_{type(value).__name__}_{index}"
        self.__module__ = __name__

    def __call__(self) -> object:
        """Returns an object of its own."""
        return snapshot(self.pattern)


def is_made(value: object, nodes: "Mapping[int, Node]") -> bool:
    """Whether a forward made an object itself, and put nothing of this one call into it.

    It did if nothing but running functions refers to it, directly or through the lists and
    dicts by which arguments are handed on. A tensor or a size of this call must not be in it,
    since the graph holds for others too.

    Args:
        value: The object.
        nodes: What computes each tensor that the forward has seen, by the tensor's identity.
    """
    parts = list(parts_of(value, set()))
    if any(isinstance(part, Symbol) for part in parts):
        return False
    if not all(_is_constant(nodes.get(id(part))) for part in parts if isinstance(part, Tensor)):
        return False
    parts.clear()  # or it would count as what refers to the object
    return _only_running_functions_hold([value])


def _is_constant(node: "Node | None") -> bool:
    """Whether a tensor is made of plain numbers alone."""
    if node is None or node.op not in ("call_function", "call_method"):
        return False
    return all(_is_constant(source) for source in node.all_input_nodes)


def _only_running_functions_hold(values: list[object]) -> bool:
    held = {id(values)}
    while values:
        referrers = [each for each in gc.get_referrers(*values) if not isinstance(each, FrameType)]
        referrers = [each for each in referrers if id(each) not in held]
        if not all(isinstance(each, _PASSING) for each in referrers):
            return False
        values = referrers
        held |= {id(referrers), *map(id, referrers)}
    return True


def watch(node: "Node", value: Any, tracer: "LocalTracer") -> None:
    """Lets the tracer see what the forward does with an object that it made, which `node` computes now.

    Its class is exchanged for one that tells the tracer first; `unwatch` undoes that. No other
    object of the class is touched.
    """
    kind: Any = type(value)
    thread = threading.get_ident()

    def is_seen(name: str) -> bool:
        return not tracer.suspended and threading.get_ident() == thread and not name.startswith("__")

    def read(self: Any, name: str) -> Any:
        attribute = kind.__getattribute__(self, name)
        if not is_seen(name):
            return attribute
        symbol = ObjectSymbol(node, self, tracer)
        if getattr(attribute, "__self__", None) is self:
            return Method(symbol, name)
        return tracer.call(getattr, symbol, name)

    def write(self: Any, name: str, attribute: Any) -> None:
        if is_seen(name):
            tracer.call(setattr, ObjectSymbol(node, self, tracer), name, attribute)
        else:
            kind.__setattr__(self, name, attribute)

    members = {"__getattribute__": read, "__setattr__": write, "__module__": kind.__module__}
    value.__class__ = type(kind.__name__, (kind,), members)


def unwatch(value: Any) -> None:
    """Gives an object the class back that it had before it was watched."""
    value.__class__ = type(value).__bases__[0]
