"""What a model shows of an encoder whose tokens are preceded by prompts, and what a decoder reads of it.

The decoder attends to the states of prompts too. An encoder that is called by itself, as before
decoding step by step, gives them with its last states, to be handed on. What the whole model
shows keeps the length of the user's sequence. It remembers the states that it was cut from, so that they
are read where the user hands on what was shown.

Names of arguments and results are those of transformers' forwards.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Arguments = Mapping[str, Any]

STATES = "encoder_last_hidden_state"
"""What models call the last states of their encoder."""


def reading(arguments: Arguments) -> Arguments:
    """Returns the arguments of a module that attends to other states, its mask as long as they are."""
    mask, states = arguments.get("encoder_attention_mask"), arguments.get("encoder_hidden_states")
    if mask is None or states is None or mask.shape[-1] >= states.shape[1]:
        return arguments
    more = states.shape[1] - mask.shape[-1]
    seen = 1 if mask.dim() == 2 else seen_in(mask)
    return {**arguments, "encoder_attention_mask": functional.pad(mask, (more, 0), value=seen)}


def seen_in(mask: Tensor) -> int:
    """Returns what a mask for pairs of queries and keys says of a pair that it lets pass."""
    return 1 if mask.dtype == torch.bool else 0


def whole(arguments: Arguments) -> Arguments:
    """Returns the arguments of a decoder with the states from which those were cut that it is given."""
    states = arguments.get("encoder_hidden_states")
    cut_from = getattr(states, "cut_from", None)
    return arguments if cut_from is None else {**arguments, "encoder_hidden_states": cut_from}


def answered_by_name(arguments: Arguments) -> Arguments:
    """Returns the arguments of a call that shall answer by name: a tuple does not tell what is what."""
    return {**arguments, "return_dict": True} if arguments.get("return_dict") is False else arguments


def shown_states(output: Any, arguments: Arguments, length: int, members: int) -> Any:
    """Returns what a model returned with the states of its encoder as long as the user's sequence.

    Args:
        output: What was returned, by name.
        arguments: What the user called it with.
        length: Positions of prompts in front of the user's.
        members: How many prompts of an ensemble gave states, side by side; the mean of theirs is shown.
    """
    if not isinstance(output, dict):
        return output
    states = output.get(STATES)
    if isinstance(states, Tensor) and not hasattr(states, "cut_from"):
        each = states.unflatten(1, (members, -1))
        mask = arguments.get("attention_mask")
        length = length if mask is None else max(0, each.shape[2] - mask.shape[-1])
        output[STATES] = _cut(states, each[:, :, length:].mean(1) if members > 1 else states[:, length:])
    for name in [name for name in output if name.startswith("cross")]:
        output[name] = tuple(_without_keys(each, length) for each in output[name])
    named: Any = output
    return named.to_tuple() if arguments.get("return_dict") is False else output


def _cut(states: Tensor, shown: Tensor) -> Tensor:
    if not torch.compiler.is_compiling():  # a graph gives tensors that remember nothing
        shown.cut_from = states  # pyright: ignore[reportAttributeAccessIssue]
    return shown


def _without_keys(probabilities: Any, length: int) -> Any:
    is_map = isinstance(probabilities, Tensor) and probabilities.dim() == 4
    return probabilities[..., length:] if is_map else probabilities
