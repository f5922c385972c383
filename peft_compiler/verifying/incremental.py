"""Decodes an example step by step, for any model whose forward takes a cache."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peft_compiler.verifying.outputs import tensors_of

CACHE = "past_key_values"
STEPPED = ("decoder_input_ids", "decoder_inputs_embeds", "input_ids", "inputs_embeds")
"""Arguments that hold the sequence to decode, in order of preference: an encoder-decoder has both."""


def incremental_outputs(
    model: nn.Module, inputs: Mapping[str, Any]
) -> tuple[list[Tensor], list[Tensor]] | None:
    """Returns the outputs for the steps of the example, joined, and for the whole; None without a cache.

    The first step is half of the sequence, each other one position. Of what the model
    returns, the first tensor with the length of the sequence is compared: logits or states.
    None too where a decoder makes up its own sequence: then the example has only the encoder's.
    """
    name = next((name for name in STEPPED if isinstance(inputs.get(name), Tensor)), None)
    accepted = inspect.signature(model.forward).parameters
    if name is None or CACHE not in accepted or "use_cache" not in accepted:
        return None
    if not name.startswith("decoder_") and "decoder_input_ids" in accepted:
        return None
    length = inputs[name].shape[1]
    constant = {key: value for key, value in inputs.items() if key not in (CACHE, "use_cache", "labels")}
    with torch.no_grad():
        whole = model(**constant)
        first = model(**_until(constant, name, 0, length // 2), use_cache=True)
        cache = getattr(first, CACHE, None)
        if cache is None or length < 3:
            return None
        steps = [_sequence(first, length // 2)]
        for position in range(length // 2, length):
            step = _until(constant, name, position, position + 1)
            output = model(**step, **{CACHE: cache}, use_cache=True)
            cache = getattr(output, CACHE)
            steps.append(_sequence(output, 1))
    return [torch.cat(steps, 1)], [_sequence(whole, length)]


def _until(inputs: Mapping[str, Any], name: str, start: int, stop: int) -> dict[str, Any]:
    """Returns the arguments for the positions from `start` to `stop`, when those before are in the cache.

    A mask of the sequence covers what is in the cache too; every other argument that is as long
    as the sequence has only the new positions, masks that say what each may see elsewhere among
    them. What belongs to an encoder stays whole.
    """
    length = inputs[name].shape[1]
    prefix = "decoder_" if name.startswith("decoder_") else ""

    def part(key: str, value: Any) -> Any:
        belongs = key.startswith(prefix) and isinstance(value, Tensor) and value.dim() > 1
        if not belongs or value.shape[1] != length:
            return value
        covers_cache = key.endswith("attention_mask") and value.dim() == 2
        return value[:, :stop] if covers_cache else value[:, start:stop]

    return {key: part(key, value) for key, value in inputs.items()}


def _sequence(output: Any, length: int) -> Tensor:
    """Returns the first tensor of an output that has a value for each position."""
    return next(tensor for tensor in tensors_of(output) if tensor.dim() > 2 and tensor.shape[1] == length)
