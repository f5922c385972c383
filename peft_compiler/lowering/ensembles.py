"""Several prompts of one task in one batch.

Section 6 of prompt tuning (arXiv:2104.08691): each row of a batch is repeated for each prompt,
and what the model answers to the repetitions is made one answer again. The rows of one
example stand one after another, in the order of the prompts.
"""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from peft_compiler.lowering.hidden_positions import CACHES
from peft_compiler.lowering.returned import first_of, with_first

_LEADING = ("decoder_input_ids", "input_ids", "inputs_embeds")
"""Arguments that tell how many rows a batch has; the first one given counts."""


def repeated(arguments: Mapping[str, Any], members: int, tokens: str) -> Mapping[str, Any]:
    """Returns the arguments of a call with every row of its batch repeated for each of `members` prompts.

    What has another number of rows, such as the states of an encoder that ran before, has
    them already. Rows that were repeated by the model are not repeated again by its tower.
    """
    given = (arguments.get(name) for name in (*_LEADING, tokens))
    leading = next(value for value in given if isinstance(value, Tensor))
    if getattr(leading, "members", 1) == members:
        return arguments
    rows = len(leading)
    return {name: _repeated(value, rows, members) for name, value in arguments.items()}


def _repeated(value: Any, rows: int, members: int) -> Any:
    if type(value) is dict:  # masks by the kind of layer, no result of a module
        return {name: _repeated(each, rows, members) for name, each in value.items()}
    if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != rows:
        return value
    longer = value.repeat_interleave(members, 0)
    longer.members = members  # pyright: ignore[reportAttributeAccessIssue]
    return longer


def member_prompts(prompts: Tensor, rows: int) -> Tensor:
    """Returns (rows, n, d): for each row of a repeated batch its prompt of `prompts` (members, n, d)."""
    return prompts.repeat(rows // len(prompts), 1, 1)


def side_by_side(output: Any, members: int) -> Any:
    """Returns what an encoder returned with one row for each example: its members' states one after another.

    They become (batch, members · n, d), so that whoever repeats or picks examples, as a beam search
    does, takes those of all members.
    """
    if isinstance(output, dict):
        name = next(iter(output))  # the states come first in every class of outputs
        output[name] = output[name].unflatten(0, (-1, members)).flatten(1, 2)
        return output
    return with_first(output, first_of(output).unflatten(0, (-1, members)).flatten(1, 2))


def apart(arguments: Mapping[str, Any], members: int) -> Mapping[str, Any]:
    """Returns the arguments of a decoder with a row of states for each member of an ensemble again."""
    states = arguments.get("encoder_hidden_states")
    if members == 1 or states is None:
        return arguments
    return {**arguments, "encoder_hidden_states": states.unflatten(1, (members, -1)).flatten(0, 1)}


class RepeatsRows:
    """Comes before the class of a cache that holds a row for each member of an ensemble."""

    members: int

    def reorder_cache(self, beam_idx: Tensor) -> Any:
        """Picks the rows of all members of the examples that are picked."""
        rows = beam_idx[:, None] * self.members + torch.arange(self.members, device=beam_idx.device)
        return super().reorder_cache(rows.flatten())  # pyright: ignore


@functools.cache
def _repeating(original: type[Any]) -> type[Any]:
    own = {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(original.__name__, (RepeatsRows, original), own)


def answered(output: Any, arguments: Mapping[str, Any], members: int, answer: str) -> Any:
    """Returns what a model returned with one row for each example; its cache picks rows by example."""
    if isinstance(output, Mapping):
        for cache in filter(None, map(output.get, CACHES)):
            if not isinstance(cache, RepeatsRows) and hasattr(cache, "reorder_cache"):
                cache.__class__ = _repeating(type(cache))
                cache.members = members
    return joined(output, arguments, members, answer)


def joined(output: Any, arguments: Mapping[str, Any], members: int, answer: str, name: str = "") -> Any:
    """Returns what a model returned with one row for each example again: the mean of its prompts' rows.

    By `answer="majority"`, logits are the number of prompts that find each class the likeliest,
    plus, to tell ties apart, the mean of their probabilities.
    """
    rows = next(len(v) for v in arguments.values() if getattr(v, "members", 1) == members)
    if isinstance(output, Tensor):
        if output.dim() < 2 or len(output) != rows or not output.is_floating_point():
            return output
        each = output.unflatten(0, (-1, members))
        if answer == "majority" and name in ("logits", ""):
            votes = functional.one_hot(each.argmax(-1), each.shape[-1]).to(each.dtype)
            return votes.sum(1) + each.softmax(-1).mean(1)
        return each.mean(1)
    if isinstance(output, list | tuple):
        items = [joined(item, arguments, members, answer, name) for item in output]
        return items if isinstance(output, list) else tuple(items)
    if isinstance(output, dict):
        for key in list(output):
            output[key] = joined(output[key], arguments, members, answer, key)
    return output
