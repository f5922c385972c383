"""Keys and values that the base computes for words, for prefixes that start from them."""

import inspect
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from peft_compiler.errors import LoweringError
from peft_compiler.lowering.emit import emit, tidy
from peft_compiler.lowering.extend_attention import keys_and_values
from peft_compiler.lowering.layouts import Layout
from peft_compiler.lowering.parts import all_heads
from peft_compiler.lowering.snapshots import evaluated
from peft_compiler.lowering.trace import LocalTracer
from peft_compiler.methods._prompts import KeysAndValues
from peft_compiler.site import Core, Site


def observe(
    model: nn.Module,
    sites: Sequence[Site],
    words: tuple[int, ...],
    example: Mapping[str, Any],
    layouts: Mapping[Site, Layout] = MappingProxyType({}),
) -> list[KeysAndValues]:
    """Returns the keys (key_heads, n, key_width) and values of each attention at `sites` for `words`.

    The base is run once, on the words alone; each attention's forward is traced for that call.

    Raises:
        LoweringError: If the model takes no token ids, or an attention has a form that is not known.
    """
    calls: dict[str, tuple[Any, ...]] = {}

    def note(path: str) -> Any:
        return lambda _, args, kwargs: calls.setdefault(path, (args, kwargs))  # pyright: ignore

    hooks = [
        model.get_submodule(path).register_forward_pre_hook(note(path), with_kwargs=True)
        for path in dict.fromkeys(site.path for site in sites)
    ]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), evaluated(model):
            model(**_with_words(model, words, example))
            return [
                _observed(
                    model.get_submodule(site.path),
                    layouts.get(site, Layout(site.place, None)),
                    *calls[site.path],
                )
                for site in sites
            ]
    finally:
        for hook in hooks:
            hook.remove()


def _with_words(model: nn.Module, words: tuple[int, ...], example: Mapping[str, Any]) -> dict[str, Any]:
    """Returns arguments like those of the example, for one sequence of `words` without padding."""
    ids = torch.tensor([words], device=next(model.parameters()).device)
    arguments = {name: ids for name in example if name.endswith("input_ids")}
    if not arguments:
        found = ", ".join(example)
        raise LoweringError(f"words cannot be read by a model whose example has no token ids; found {found}")
    masks = {name: torch.ones_like(ids) for name in example if name.endswith("attention_mask")}
    others = {name: _first(value, ids) for name, value in example.items()}
    if "use_cache" in inspect.signature(model.forward).parameters:
        others["use_cache"] = False  # or an attention that is run again would add to what it has cached
    return {**others, **masks, **arguments}


def _first(value: Any, ids: Tensor) -> Any:
    """Returns the first row of an argument, such as an image; nothing of what is as long as another text."""
    if not isinstance(value, Tensor):
        return value
    return value[:1].to(ids.device) if value.is_floating_point() else None


def _observed(
    module: nn.Module, layout: Layout, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> KeysAndValues:
    core = layout.place
    assert isinstance(core, Core)
    tracer = LocalTracer(module, core.opened)
    graph = tracer.trace(type(module).forward, args, kwargs)
    graph.output_node().args = (keys_and_values(graph, core),)
    tidy(graph)
    _, run = emit(graph)
    found = run(module, *[args[a] if isinstance(a, int) else kwargs[a] for a in tracer.arguments])
    keys, values = (_of_key_heads(tensor, core) for tensor in found)
    if layout.spread is not None and layout.spread.weight is not None:
        keys, values = all_heads((keys, values), module.get_parameter(layout.spread.weight))
    return keys.float().cpu(), values.float().cpu()


def _of_key_heads(tensor: Tensor, core: Core) -> Tensor:
    """Returns (key_heads, n, width) of keys or values (1, ..., heads, n, width).

    Spelt out, keys of a group may have been repeated for each of its queries.
    """
    by_head = tensor.reshape(-1, *tensor.shape[-2:])
    return by_head[:: len(by_head) // core.key_heads]
