"""Runs a model once and records its ops. The only file that knows how a model is recorded."""

import inspect
import random
from collections import OrderedDict
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves, tree_map

from peft_compiler.analysis.garbage import no_garbage
from peft_compiler.analysis.held import tensors_held
from peft_compiler.analysis.inputs import candidate_inputs
from peft_compiler.analysis.media import inputs_with_media
from peft_compiler.analysis.meta_mode import MetaFloats, is_real_type
from peft_compiler.analysis.module_graph import ModuleFact, ModuleGraph
from peft_compiler.analysis.recorder import Recorder
from peft_compiler.analysis.stand_ins import stand_in
from peft_compiler.copies import copied
from peft_compiler.errors import CaptureError
from peft_compiler.quantised import packed_in, quantised_names, unreadable_in

_COLLECTIONS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
_TABLES = (dict, OrderedDict)
_DEEPEST_OUTPUT = 5
_LONGEST_CAUSE = 300


class _Arguments(NamedTuple):
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@no_garbage()
def capture(model: nn.Module, example_inputs: Any = None) -> ModuleGraph:
    """Returns the ops of one run of `model` in eval mode, without its weights.

    The run is that of a copy on the meta device which shares nothing with the model; the
    model itself, the random state and the caller's inputs stay as they are. Hooks of the
    model are part of what it computes, so those of the copy run.

    Args:
        model: Any module, on any device, the meta device included.
        example_inputs: Keyword arguments of forward as a dict, positional ones as a tuple,
            or a single tensor. Without them, inputs are derived from forward's signature
            and the model's config.

    Raises:
        CaptureError: The model cannot be run on the inputs given, or on any that were derived, or it
            keeps weights as codes that nothing is known of.
    """
    if unreadable := [*unreadable_in(model)]:
        raise CaptureError(f"{type(model).__name__} keeps weights as codes that cannot be told", unreadable)
    if example_inputs is not None:
        try:
            return _record(model, _as_arguments(example_inputs))
        except Exception as error:
            raise CaptureError(
                f"{type(model).__name__} cannot be run on the example inputs",
                [
                    f"passed {_describe(example_inputs)}",
                    _cause(error),
                    "check them with model(**example_inputs)",
                ],
            ) from error
    failures: list[str] = []
    for candidate in candidate_inputs(model):
        try:
            return _record(model, _as_arguments(candidate))
        except Exception as error:
            failures.append(f"tried {_describe(candidate)}: {_cause(error)}")
    raise CaptureError(
        f"{type(model).__name__} cannot be run on inputs derived from its forward and config",
        [
            *(failures or ["its forward takes no argument of a known kind"]),
            "pass example_inputs, a dict of arguments",
        ],
    )


@no_garbage()
def capture_with_media(model: nn.Module) -> ModuleGraph | None:
    """Returns the ops of a run on images or sound among words, or None where no such inputs can be derived.

    As `capture` otherwise, which takes the simplest inputs that a model can be run on.
    """
    twin = _without_weights(model)
    for candidate in _under_meta_mode(inputs_with_media(twin)):
        try:
            return _record(model, _as_arguments(candidate))
        except Exception:
            continue  # inputs of a form that this model does not take
    return None


def _under_meta_mode(candidates: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields each, made where floats have no values; what the caller does with it is not done there."""
    while True:
        with _random_state_kept(), MetaFloats():
            candidate = next(candidates, None)
        if candidate is None:
            return
        yield candidate


def _record(model: nn.Module, arguments: _Arguments) -> ModuleGraph:
    twin = _without_weights(model)
    floats = MetaFloats()
    recorder = Recorder(_names_by_identity(twin), floats)
    _watch(twin, recorder)
    if "use_cache" in inspect.signature(twin.forward).parameters:
        arguments.kwargs.setdefault("use_cache", False)
    example = tree_map(_kept, tuple(arguments))
    arguments = _Arguments(*tree_map(_without_data, tuple(arguments)))
    inputs = {name: recorder.add_input(name, tensor) for name, tensor in _named_tensors(twin, arguments)}
    with _random_state_kept(), torch.no_grad(), floats, recorder:
        out = twin(*arguments.args, **arguments.kwargs)
    outputs = {
        name: node for name, tensor in _tensors_of(out) if (node := recorder.node_of(tensor)) is not None
    }
    # What was written to a cache, a buffer or an input outlives the run as well.
    left = {*outputs.values(), *map(recorder.node_of, tensors_held((out, arguments, twin)))}
    recorder.graph.output(tuple(outputs.values()))
    return ModuleGraph(
        graph=recorder.graph,
        modules={path: _module_fact(module) for path, module in twin.named_modules(remove_duplicate=False)},
        parameters=recorder.parameters,
        inputs=inputs,
        outputs=outputs,
        left=frozenset(node for node in left if node is not None and node.op == "call_function"),
        calls={path: tuple(calls) for path, calls in recorder.calls.items()},
        faked=floats.faked + recorder.faked,
        example=example,
        quantised=quantised_names(model),
    )


def _without_weights(model: nn.Module) -> nn.Module:
    """Returns a copy in eval mode: floats on the meta device, integers copied, nothing shared."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        if packed := packed_in(module):
            memo[id(module)] = stand_in(module, packed)
            continue
        held = (*module.parameters(recurse=False), *module.buffers(recurse=False), *vars(module).values())
        for value in held:
            if isinstance(value, Tensor):
                memo.setdefault(id(value), _without_data(value))
            elif type(value) in _TABLES and not value:
                # Most of a module are empty tables of hooks, and deepcopy takes long over each of them.
                memo[id(value)] = type(value)()
    twin = copied(model, memo).eval()
    for module in twin.modules():
        # What was put around a forward moves weights between devices; here there are none.
        vars(module).pop("forward", None)
    for config in {
        id(config): config for config in map(_config_of, twin.modules()) if config is not None
    }.values():
        _prefer_batched(config)
    return twin


def _without_data(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    if is_real_type(value.dtype):
        bare = value.detach().clone() if value.is_meta else value.detach().to("cpu", copy=True)
    elif type(value) in (Tensor, nn.Parameter) and value.layout is torch.strided and value.is_contiguous():
        # Many times faster than empty_like, and the same.
        bare = torch.empty(value.shape, dtype=value.dtype, device="meta")
    elif is_traceable_wrapper_subclass(value):
        # What it is made of, such as codes and scales, may have no form without data; it is used as this.
        bare = torch.empty(value.shape, dtype=value.dtype, device="meta")
    else:
        bare = torch.empty_like(value, device="meta", requires_grad=False)
    return nn.Parameter(bare, requires_grad=False) if isinstance(value, nn.Parameter) else bare


def _kept(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) and not value.is_meta else value


def _config_of(module: nn.Module) -> Any:
    return vars(module).get("config")


def _prefer_batched(config: Any) -> None:
    """Has experts computed by one batched op instead of a loop over them, and nothing cached."""
    if hasattr(config, "_experts_implementation"):
        config._experts_implementation = "batched_mm"
    if getattr(config, "use_cache", None):
        config.use_cache = False


def _names_by_identity(twin: nn.Module) -> dict[int, tuple[str, ...]]:
    names: dict[int, list[str]] = {}
    for tensors in (
        twin.named_parameters(remove_duplicate=False),
        twin.named_buffers(remove_duplicate=False),
    ):
        for name, tensor in tensors:
            names.setdefault(id(tensor), []).append(name)
    return {identity: tuple(found) for identity, found in names.items()}


def _watch(twin: nn.Module, recorder: Recorder) -> None:
    for path, module in twin.named_modules():

        def enter(_: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
            recorder.enter(path, (args, kwargs))

        def leave(_: nn.Module, _args: Any, out: Any) -> None:
            recorder.leave(out)

        module.register_forward_pre_hook(enter, with_kwargs=True)
        module.register_forward_hook(leave)


def _module_fact(module: nn.Module) -> ModuleFact:
    return ModuleFact(
        type=type(module).__name__,
        children=tuple(name for name, _ in module.named_children()),
        is_collection=isinstance(module, _COLLECTIONS),
        parameters=tuple(name for name, _ in module.named_parameters(recurse=False)),
        size=sum(parameter.numel() for parameter in module.parameters()),
    )


def _as_arguments(example_inputs: Any) -> _Arguments:
    if isinstance(example_inputs, Tensor):
        return _Arguments((example_inputs,), {})
    if isinstance(example_inputs, Mapping):
        return _Arguments((), dict(example_inputs))
    return _Arguments(tuple(example_inputs), {})


def _named_tensors(twin: nn.Module, arguments: _Arguments) -> Iterator[tuple[str, Tensor]]:
    positional = list(inspect.signature(twin.forward).parameters)
    values = [*zip(positional, arguments.args, strict=False), *arguments.kwargs.items()]
    for name, value in values:
        tensors = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
        for index, tensor in enumerate(tensors):
            yield (name if tensor is value else f"{name}_{index}"), tensor


def _tensors_of(out: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    if isinstance(out, Tensor):
        yield name, out
    elif depth < _DEEPEST_OUTPUT and isinstance(out, (Mapping, list, tuple)):
        for key, value in out.items() if isinstance(out, Mapping) else enumerate(out):
            yield from _tensors_of(value, f"{name}.{key}" if name else str(key), depth + 1)


@contextmanager
def _random_state_kept() -> Generator[None]:
    state = random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(state)


def _describe(inputs: Any) -> str:
    arguments = _as_arguments(inputs)
    values = [
        *(("", value) for value in arguments.args),
        *((f"{name}=", v) for name, v in arguments.kwargs.items()),
    ]
    return ", ".join(prefix + (_brief(value)) for prefix, value in values) or "no arguments"


def _brief(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return repr(value)


def _cause(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= _LONGEST_CAUSE else f"{text[:_LONGEST_CAUSE]}…"
