"""Notes every op of a running model as a node of a graph."""

import inspect
import operator
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode

from peft_compiler.analysis.meta_mode import READS, MetaFloats, made_up_answer, memory_of, tensors_in
from peft_compiler.analysis.module_graph import Call, Fact, fact
from peft_compiler.analysis.repeats import Repeats
from peft_compiler.frames import OPENED, call_chain, op_name
from peft_compiler.site import Anchor

# Attributes of a tensor that are tensors computed from it; all others are plain facts.
_DERIVED_ATTRIBUTES = frozenset({"T", "mT", "H", "mH", "data", "real", "imag"})
# Methods that say something about a tensor and compute nothing.
_QUESTIONS = frozenset(
    {
        "size", "dim", "stride", "numel", "nelement", "ndimension", "element_size", "storage_offset",
        "data_ptr", "untyped_storage", "get_device", "is_contiguous", "is_floating_point", "is_complex",
        "is_inference", "is_same_size", "result_type", "can_cast", "requires_grad_", "register_hook",
        "__len__", "__hash__", "__format__", "__repr__", "__set__",
    }
)  # fmt: skip


def after_write(stale: Tensor, written: Tensor) -> Tensor:
    """Stands in the graph where a tensor is read whose memory was written through another one."""
    return stale


class Recorder(TorchFunctionMode):
    """Records while it is active. A value is the identity of a tensor, which is kept alive for that.

    Attributes:
        graph: What was recorded so far.
        parameters: Names of the parameters and buffers that were used.
        calls: The tensors in and out of every call of each module.
        faked: How many reads of a tensor without data were answered.
    """

    def __init__(self, names: Mapping[int, tuple[str, ...]], floats: MetaFloats) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.parameters: dict[fx.Node, tuple[str, ...]] = {}
        self.calls: dict[str, list[Call]] = {}
        self.faked = 0
        self._names = names
        self._repeats = Repeats(floats)
        self._nodes: dict[int, fx.Node] = {}
        self._alive: list[Tensor] = []
        self._last_writes: dict[int, fx.Node] = {}
        self._running: list[tuple[str, Counter[Any], tuple[fx.Node, ...]]] = [("", Counter(), ())]
        self._count = 0

    # ---- modules

    def enter(self, path: str, arguments: Any) -> None:
        """Notes that the module at `path` starts to run."""
        self._running.append((path, Counter(), self._known(arguments)))

    def leave(self, outputs: Any) -> None:
        """Notes that the module that runs is done."""
        path, _, inputs = self._running.pop()
        self.calls.setdefault(path, []).append(
            Call(inputs, self._known(outputs), isinstance(outputs, Tensor))
        )

    def _known(self, values: Any) -> tuple[fx.Node, ...]:
        tensors = tensors_in(values)
        return tuple(self._nodes[id(tensor)] for tensor in tensors if id(tensor) in self._nodes)

    # ---- values

    def add_input(self, name: str, tensor: Tensor) -> fx.Node:
        """Returns a new node for a tensor that the model is called with."""
        return self._add(self.graph.placeholder(name), "input", tensor)

    def node_of(self, tensor: Tensor) -> fx.Node | None:
        """Returns the node of a tensor that was seen before, with all that was written to it; or None."""
        return self._current(tensor) if id(tensor) in self._nodes else None

    def _add(self, node: fx.Node, op: str, out: Any, anchor: Anchor | None = None) -> fx.Node:
        tensor = out if isinstance(out, Tensor) else tensors_in(out)[0]
        shape = tuple(out.shape) if isinstance(out, Tensor) else ()
        node.meta["fact"] = Fact(self._count, op, shape, tensor.dtype, self._running[-1][0], anchor)
        self._count += 1
        if isinstance(out, Tensor):
            self._nodes[id(out)] = node
            self._alive.append(out)
        return node

    def _current(self, tensor: Tensor) -> fx.Node:
        node = self._nodes.get(id(tensor))
        if node is None:
            names = self._names.get(id(tensor))
            attribute = self.graph.create_node("get_attr", names[0] if names else "constant")
            node = self._add(attribute, "parameter" if names else "constant", tensor)
            if names:
                self.parameters[node] = names
            return node
        written = self._last_writes.get(memory_of(tensor))
        if written is not None and fact(written).order > fact(node).order:
            return self._note_write(tensor, node, written)
        return node

    def _note_write(self, tensor: Tensor, stale: fx.Node, written: fx.Node) -> fx.Node:
        return self._add(self.graph.call_function(after_write, (stale, written)), "after_write", tensor)

    # ---- ops

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name: str = getattr(func, "__name__", "")
        op = op_name(func)
        if name in _QUESTIONS or (name == "__get__" and op not in _DERIVED_ATTRIBUTES):
            return func(*args, **kwargs)
        if func in OPENED:
            with self:
                return OPENED[func](*args, **kwargs)
        if name in READS and isinstance(args[0], Tensor) and args[0].is_meta:
            self.faked += 1
            known = self._nodes.get(id(args[0]))
            return made_up_answer(name, args[0], fact(known).op if known else None)
        return self._run(func, op, args, kwargs, call_chain(inspect.currentframe()))

    def _run(self, func: Any, op: str, args: Any, kwargs: Any, frames: tuple[tuple[str, int], ...]) -> Any:
        def as_node(leaf: Any) -> Any:
            return self._current(leaf) if isinstance(leaf, Tensor) else leaf

        tensors = tensors_in((args, kwargs))
        node_args, node_kwargs = map_aggregate(args, as_node), map_aggregate(kwargs, as_node)
        versions = [tensor._version for tensor in tensors]
        out = self._repeats.run(func, args, kwargs, tensors)
        written = [
            tensor for tensor, version in zip(tensors, versions, strict=True) if tensor._version != version
        ]
        result = args[0] if op == "setitem" else out
        unchanged = not written and any(result is tensor for tensor in tensors)
        if unchanged or not (isinstance(result, Tensor) or tensors_in(result)):
            return out
        stale = [(tensor, self._nodes[id(tensor)]) for tensor in written if tensor is not result]
        node = self.graph.call_function(func, node_args, node_kwargs)
        self._add_outputs(self._add(node, op, result, self._anchor(frames, op)), result)
        for tensor, before in stale:
            self._note_write(tensor, before, node)
        for tensor in written:
            self._last_writes[memory_of(tensor)] = self._nodes[id(tensor)]
        return out

    def _add_outputs(self, node: fx.Node, result: Any) -> None:
        if isinstance(result, Tensor):
            return
        for index, part in enumerate(result):
            if tensors_in(part):
                child = self.graph.call_function(operator.getitem, (node, index))
                self._add_outputs(self._add(child, "output", part), part)

    def _anchor(self, frames: tuple[tuple[str, int], ...], op: str) -> Anchor:
        counts = self._running[-1][1]
        occurrence = counts[frames, op]
        counts[frames, op] += 1
        return Anchor(frames, op, occurrence)
