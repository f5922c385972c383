"""The class of a rewritten module: a GraphModule, and still its original class.

The object stays the same and changes its class, so whatever goes by identity, by
`isinstance` or by class name (output recording, sharding, no-split lists) finds what it
knew. A module that an insertion joins as a whole gets one fixed graph: its host's forward
and the insertions around it. A module that is rewritten inside gets one graph for each
signature of calls, traced when first met. State is the edits; graphs are rebuilt from them.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from peft_compiler.copies import PLANNED, bind_spread_anew, memo_of_spread, own_state
from peft_compiler.errors import LoweringError
from peft_compiler.lowering.compilation import compilation_of, is_compiled
from peft_compiler.lowering.edit import Carrier, Edit, Flavour, opened_by
from peft_compiler.lowering.emit import ITSELF, emit, named, tidy
from peft_compiler.lowering.extend_input import open_graph
from peft_compiler.lowering.guards import GuardFailed
from peft_compiler.lowering.installed import hand_over
from peft_compiler.lowering.modes import keep_modes
from peft_compiler.lowering.parts import by_plan
from peft_compiler.lowering.readable import Section, readable
from peft_compiler.lowering.routed import carrying, receiving
from peft_compiler.lowering.signature import signature_of
from peft_compiler.lowering.trace import LocalTracer
from peft_compiler.lowering.wire import WIRE
from peft_compiler.spread import holds_spread


@dataclass(frozen=True, slots=True)
class Variant:
    """One local graph, with all edits, and the function that it was compiled to."""

    graph: Graph
    code: str
    run: Callable[..., Any]
    arguments: tuple[int | str, ...] = ()


@dataclass(slots=True)
class Rewriting:
    """What a rewritten module knows: its edits, and a cache of variants that copies and files leave out."""

    edits: tuple[Edit, ...]
    config: object = None
    variants: dict[Hashable, list[Variant]] = field(default_factory=dict[Hashable, list[Variant]])

    def __getstate__(self) -> tuple[tuple[Edit, ...], object]:
        return self.edits, self.config

    def __setstate__(self, state: tuple[tuple[Edit, ...], object]) -> None:
        self.edits, self.config = state
        self.variants = {}


class Rewritten(GraphModule):
    """Comes before the original class in the bases of a rewritten module's class."""

    original: ClassVar[type[nn.Module]]
    flavour: ClassVar[Flavour]
    fixed: ClassVar[Variant | None] = None
    rewriting: Rewriting
    # What torch.compile asks every GraphModule for: lines of its code that came from elsewhere.
    _lineno_map: ClassVar[None] = None
    _prologue_start: ClassVar[None] = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Constructing the class anew gives the plain original."""
        return cls.original(*args, **kwargs)

    @property
    def graph(self) -> Graph:  # pyright: ignore[reportIncompatibleMethodOverride]  (not to be set)
        """The graph of the newest signature. To change it, change the spec and compile again."""
        if torch.compiler.is_exporting() and get_proxy_mode() is not None:
            # Without this, what is exported would take the arguments of another call, in their order.
            raise LoweringError(
                "torch.export would run the graph of one earlier call in place of the forward, as it does "
                "with every GraphModule when strict=False: export with strict=True"
            )
        return self._newest().graph

    @property
    def code(self) -> str:
        """The Python code of `graph`."""
        return self._newest().code

    @property
    def has_graph(self) -> bool:
        """Whether a signature was traced yet; a module that was never called has no graph."""
        return self.fixed is not None or bool(self.rewriting.variants)

    def print_readable(self, print_output: bool = True, *args: Any, **kwargs: Any) -> str:
        """Returns, and prints, the code of this module and of every rewritten one below it."""
        parts = [(path, module) for path, module in self.named_modules() if isinstance(module, Rewritten)]
        text = readable(
            Section(path, module.original.__name__, (module.original, module.rewriting.edits), module.code)
            for path, module in parts
            if module is self or module.has_graph
        )
        if print_output:
            print(text)
        return text

    def _newest(self) -> Variant:
        if self.fixed is not None:
            return self.fixed
        variants = self.rewriting.variants
        if not variants and self.flavour is Flavour.KEPT and is_compiled(self):
            # Nothing joins the root: its own forward runs, and its graph is made for reading.
            return trace_variant(self, (), (), compilation_of(self).example_on(self))
        if not variants:
            name = self.original.__name__
            raise LoweringError(
                f"this {name} has no graph yet: one is traced when it is first called; call the model"
            )
        return next(reversed(variants.values()))[0]

    def recompile(self) -> Any:
        """Forgets all graphs; each signature is traced again when it is next met."""
        self.rewriting.variants.clear()

    def train(self, mode: bool = True) -> Any:
        """Sets the mode, but for what has to keep its own: see `keep_modes`."""
        self.original.train(self, mode)
        keep_modes(self)
        return self

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        # Another dtype or device: what a graph took for granted may no longer hold.
        self.rewriting.variants.clear()
        return self.original._apply(self, fn, recurse)

    @property
    def itself(self) -> "Rewritten":
        """The module, for its own graph."""
        return self

    def _replicate_for_data_parallel(self) -> Any:
        raise LoweringError(
            "nn.DataParallel copies modules without what their graphs need: "
            "use DistributedDataParallel or fully_shard"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> "Rewritten":
        new = object.__new__(type(self))
        memo[id(self)] = new
        memo_of_spread(self, memo)
        new.__dict__.update(copy.deepcopy(own_state(self), memo))
        bind_spread_anew(self, new)
        return new

    def __copy__(self) -> "Rewritten":
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__)
        bind_spread_anew(self, new)
        return new

    def __reduce_ex__(self, protocol: Any) -> Any:
        if holds_spread(self):
            raise LoweringError(
                "a model that is spread over processes cannot be pickled, nor could its base: save() writes "
                "what was inserted"
            )
        return _blank, (self.original, self.flavour, self.rewriting.edits), own_state(self)


def rewrite(module: nn.Module, edits: tuple[Edit, ...], config: object, flavour: Flavour) -> None:
    """Changes the class of `module`, in place, so that its forward does what `edits` say."""
    module.__dict__["rewriting"] = Rewriting(edits, config)
    original = type(module)
    module.__class__ = _class_for(original, flavour, edits)
    hand_over(module, original, type(module))
    if flavour is Flavour.AROUND and any(edit.spread for edit in edits):
        module.__dict__[PLANNED] = module.__dict__.pop("forward")


def restore(module: Rewritten) -> None:
    """Gives a rewritten module its original class back, in place."""
    del module.__dict__["rewriting"]
    if PLANNED in module.__dict__:
        module.__dict__["forward"] = module.__dict__.pop(PLANNED)
    rewritten = type(module)
    module.__class__ = module.original  # pyright: ignore[reportAttributeAccessIssue]
    hand_over(module, rewritten, type(module))


def _blank(original: type[nn.Module], flavour: Flavour, edits: tuple[Edit, ...]) -> nn.Module:
    return object.__new__(_class_for(original, flavour, edits))


def _class_for(original: type[nn.Module], flavour: Flavour, edits: tuple[Edit, ...]) -> type[nn.Module]:
    # A fixed graph belongs to its class; the others are kept by each module.
    joining = tuple(edit for edit in edits if not isinstance(edit.place, Carrier))
    fixed = {Flavour.AROUND: joining, Flavour.BOTH: tuple(edit for edit in edits if edit.of_call)}
    return _make_class(original, flavour, fixed.get(flavour, ()), len(joining) < len(edits))


@functools.cache
def _make_class(
    original: type[nn.Module], flavour: Flavour, edits: tuple[Edit, ...], carries: bool
) -> type[nn.Module]:
    inherited = {
        name: getattr(original, name)
        for name in vars(GraphModule)
        if name not in vars(Rewritten) and hasattr(original, name) and name not in ("__dict__", "__weakref__")
    }
    own: dict[str, Any] = {
        name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")
    }
    own |= {"original": original, "flavour": flavour}
    if flavour in (Flavour.INSIDE, Flavour.BOTH):
        own["forward"] = _dispatching(original)
    if flavour in (Flavour.AROUND, Flavour.BOTH):
        own["fixed"] = fixed_variant(original, own.get("forward", original.forward), edits)
        own["forward"] = functools.wraps(original.forward)(own["fixed"].run)
    if carries:
        forward = own.get("forward", original.forward)
        own |= {"__call__": carrying(original), "forward": receiving(forward)}
    metaclass: Any = type(original)
    return metaclass(original.__name__, (Rewritten, original), inherited | own)


def fixed_variant(original: type[nn.Module], forward: Callable[..., Any], edits: tuple[Edit, ...]) -> Variant:
    """Returns the graph of a module that insertions join as a whole: `forward`, and `edits` around it."""
    if any(edit.of_call for edit in edits):
        return finished(open_graph(original, forward), edits, ())
    graph = Graph()
    graph._graph_namespace.create_name("self", None)  # pyright: ignore[reportPrivateUsage]
    positional: list[Node] = []
    keywords: dict[str, Any] = {}
    for parameter in list(inspect.signature(original.forward).parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue  # a projection has nothing to do with more than its named arguments
        node = graph.placeholder(parameter.name, default_value=parameter.default)
        if parameter.kind is parameter.KEYWORD_ONLY:
            keywords[parameter.name] = node
        else:
            positional.append(node)
    itself = graph.get_attr(ITSELF)
    # A plan's forward may take another way in each mode: it is called, whatever it does.
    called = by_plan if any(edit.spread for edit in edits) else named(original)
    host = graph.create_node("call_function", called, (itself, *positional), keywords, "host")
    host.meta["host"] = True
    graph.output(host)
    return finished(graph, edits, ())


def _dispatching(original: type[nn.Module]) -> Callable[..., Any]:
    """Returns a forward that runs the variant which fits the call."""

    @functools.wraps(original.forward)
    def forward(self: Rewritten, *args: Any, **kwargs: Any) -> Any:
        rewriting = self.__dict__["rewriting"]
        signature = signature_of(self, rewriting.config, args, kwargs)
        for variant in rewriting.variants.get(signature, ()):
            try:
                return variant.run(
                    self, *[args[a] if isinstance(a, int) else kwargs[a] for a in variant.arguments]
                )
            except GuardFailed:
                continue
        variant = trace_variant(self, signature, args, kwargs)
        return variant.run(self, *[args[a] if isinstance(a, int) else kwargs[a] for a in variant.arguments])

    return forward


def _traced(module: Rewritten, signature: Hashable, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Variant:
    """Traces the original forward for this call, applies the edits and keeps the result."""
    tracer = LocalTracer(module, opened_by(module.rewriting.edits))
    graph = tracer.trace(module.original.forward, args, kwargs)
    inside = tuple(edit for edit in module.rewriting.edits if not edit.of_call)
    variant = finished(graph, inside, tuple(tracer.arguments))
    module.rewriting.variants.setdefault(signature, []).insert(0, variant)
    return variant


# Compiled code that meets a new signature leaves for it: a tracer cannot be traced.
trace_variant: Callable[..., Variant] = torch.compiler.disable(_traced)  # pyright: ignore


def finished(graph: Graph, edits: tuple[Edit, ...], arguments: tuple[int | str, ...]) -> Variant:
    """Returns the variant that `graph` is after all `edits`."""
    for edit in edits:
        WIRE[edit.wiring](graph, edit)
    tidy(graph)
    graph.lint()
    code, run = emit(graph)
    return Variant(graph, code, run, arguments)
