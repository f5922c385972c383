"""The stages in a row: the only file that imports all of them."""

import inspect
from collections.abc import Mapping
from inspect import Parameter
from pathlib import Path
from typing import Any

from torch import nn

from peft_compiler.analysis.capture import capture, capture_with_media
from peft_compiler.analysis.find_sites import sites_of
from peft_compiler.analysis.module_graph import ModuleGraph
from peft_compiler.copies import AnyModule
from peft_compiler.errors import CaptureError, PlanError
from peft_compiler.lowering.compilation import is_compiled
from peft_compiler.lowering.installed import offloaded, spread
from peft_compiler.lowering.lower import lower
from peft_compiler.lowering.rewritten import Rewritten
from peft_compiler.plan import Plan
from peft_compiler.planning import make_plan
from peft_compiler.saving.root import as_root
from peft_compiler.spec import Spec
from peft_compiler.spec.read import read_spec

Source = Spec | Mapping[str, Any] | Path | str
"""A spec, a dict, the path of a file, or a sentence."""

_NAMELESS = (Parameter.VAR_POSITIONAL, Parameter.POSITIONAL_ONLY)


def compile(
    model: AnyModule,
    spec: Source,
    example_inputs: Any = None,
    seed: int = 0,
    tokenizer: Any = None,
    shared_with: nn.Module | None = None,
) -> AnyModule:
    """Returns `model` rewritten by `spec`, with everything but the inserted parameters frozen.

    The result shares the weights of `model`, is an instance of its class and of
    `torch.fx.GraphModule`; `model` itself stays as it was. If anything does not fit, nothing
    is changed.

    Args:
        model: Any PyTorch or transformers model.
        spec: A sentence such as `"LoRA r=8 on q,v"`, a path to a spec file, a dict or a `Spec`.
        example_inputs: What its forward takes: a dict, a tuple or a tensor. Derived when left out.
        seed: Decides the initial values, with each insertion's path.
        tokenizer: Reads the texts in the spec, if it holds any: has `encode` as those of transformers do.
        shared_with: A compiled model on the same backbone, with insertions at the same places: what
            the rules insert has its very parameters, and a step of training on either moves both.
            What is named in `train`, such as a head, stays each model's own.

    Raises:
        SpecError: If `spec` is not one.
        CaptureError: If the model cannot be run once.
        PlanError: If the spec does not fit the model; every reason is listed.
        LoweringError: If a place cannot be rewritten, or an insertion cannot be shared.
    """
    graph, planned = _planned(model, spec, example_inputs, tokenizer)
    compiled = lower(model, planned, seed, _by_keyword(model, graph), shared_with)
    as_root(compiled)
    return compiled


def plan(model: nn.Module, spec: Source, example_inputs: Any = None, tokenizer: Any = None) -> Plan:
    """Returns what `compile` would insert, without touching `model`, which may be on the meta device.

    Raises:
        SpecError: If `spec` is not one.
        CaptureError: If the model cannot be run once.
        PlanError: If the spec does not fit the model; every reason is listed.
    """
    return _planned(model, spec, example_inputs, tokenizer)[1]


def _planned(model: nn.Module, spec: Source, example_inputs: Any, tokenizer: Any) -> tuple[ModuleGraph, Plan]:
    read = read_spec(spec)
    if tokenizer is not None:
        # A text can be encoded too, into bytes: the name of a tokenizer is none.
        if isinstance(tokenizer, str) or not callable(getattr(tokenizer, "encode", None)):
            kind = type(tokenizer).__name__
            raise PlanError(f"the tokenizer is of type {kind}, expected an object that can `encode` a text")
        read = read.tokenized(tokenizer)
    rewritten = next((path for path, module in model.named_modules() if isinstance(module, Rewritten)), None)
    if rewritten is not None:
        what = "is" if is_compiled(model) else f"holds, at '{rewritten}', what is"
        raise PlanError(
            f"this {type(model).__name__} {what} compiled already; "
            "compile its base once, with one spec that holds every rule"
        )
    if elsewhere := [*spread(model), *offloaded(model)]:
        raise PlanError(f"this {type(model).__name__} cannot be compiled as it lies", elsewhere)
    graph = capture(model, example_inputs)
    sites = sites_of(graph)
    if example_inputs is None and not read.towers <= {site.tower for site in sites}:
        graph = capture_with_media(model) or graph
        sites = sites_of(graph)
    return graph, make_plan(read, sites, graph.modules[""].size)


def _by_keyword(model: nn.Module, graph: ModuleGraph) -> Mapping[str, Any]:
    """Returns the example by the names of its arguments, as a compiled model keeps it.

    Raises:
        CaptureError: If an argument has no name.
    """
    args, kwargs = graph.example
    bound = inspect.signature(model.forward).bind(*args, **kwargs)
    kinds = {name: bound.signature.parameters[name].kind for name in bound.arguments}
    nameless = [name for name, kind in kinds.items() if kind in _NAMELESS]
    if nameless:
        raise CaptureError(
            f"the forward of {type(model).__name__} takes '{nameless[0]}' by position only; "
            "pass example_inputs as a dict to a forward that takes them by name"
        )
    named = {name: value for name, value in bound.arguments.items() if kinds[name] != Parameter.VAR_KEYWORD}
    return {**named, **bound.kwargs}
