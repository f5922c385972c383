"""The positions of a call with prompts, and what it returns in the length that its user knows."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional

from peft_compiler.lowering.behind_padding import without_prompts
from peft_compiler.lowering.edit import Standing
from peft_compiler.lowering.hidden_positions import cache_in, held_in, is_empty, padding_in
from peft_compiler.lowering.prompted_mask import padding_of

EMBEDDINGS = "inputs_embeds"
"""What a forward calls the embeddings that it takes in place of tokens."""

MASK = "attention_mask"
"""What a forward calls the mask of its own positions."""

POSITIONS = "position_ids"
"""What a forward calls the positions of its tokens, where they are not their places."""

Arguments = Mapping[str, Any]


def left_padding(arguments: Arguments, standing: Standing) -> Tensor | None:
    """Returns how much padding stands before the prompts of each row (batch); None for none.

    A cache tells that of its first call; on that, the mask does.
    """
    cache = cache_in(arguments)
    if not is_empty(cache):
        return padding_in(cache, leading_of(arguments).shape[0])
    told = arguments.get(POSITIONS) is not None
    behind = standing is Standing.BEHIND or (told and standing is Standing.AS_TOLD)
    return padding_of(arguments.get(MASK)) if behind else None


def leading_of(arguments: Arguments) -> Tensor:
    """Returns the tensor that tells rows and positions of a call: its embeddings, or else its first one."""
    values = (arguments.get(EMBEDDINGS), *arguments.values())
    return next(value for value in values if isinstance(value, Tensor))


class Positions(NamedTuple):
    """The positions of a call with prompts.

    Attributes:
        length: How many the call has.
        prompts: How many of them are prompts.
        hidden: How many of its keys are prompts; more than of its positions where those are in a cache.
        keys: How many keys it has, those of a cache included.
        padding: Positions before the prompts of each row (batch), or None for none.
    """

    length: int
    prompts: int
    hidden: int
    keys: int
    padding: Tensor | None


def positions_of(arguments: Arguments, length: int, within: bool, standing: Standing) -> Positions:
    """Returns what a call has of positions, before it runs.

    Args:
        arguments: What the module is called with, prompts included.
        length: Number of prompts, where no cache has them.
        within: Whether the module is within the one whose input has the prompts; its keys are its positions.
        standing: Where prompts stand in a padded row.
    """
    cache, count = cache_in(arguments), leading_of(arguments).shape[1]
    prompts = length if is_empty(cache) else 0
    hidden = prompts if within else length
    return Positions(count, prompts, hidden, held_in(cache) + count, left_padding(arguments, standing))


def shortened(output: Any, call: Positions, name: str = "") -> Any:
    """Returns what a module returned without the states of prompts; what has them no more stays.

    Args:
        output: What was returned, or a part of it.
        call: The positions of the call.
        name: What the module calls this part.
    """
    if isinstance(output, Tensor):
        if output.dim() == 3 and output.shape[1] == call.length:
            return without_prompts(output, call.padding, call.prompts, 1)
        if output.dim() == 4 and output.shape[2] == call.length:  # attention maps
            rows = without_prompts(output, call.padding, call.prompts, 2)
            return rows if name.startswith("cross") else _own_keys(rows, call)
        return output
    if isinstance(output, list | tuple):
        items = [shortened(item, call, name) for item in output]
        return items if isinstance(output, list) else tuple(items)
    if isinstance(output, dict):
        for key in list(output):
            output[key] = shortened(output[key], call, key)
    return output


def _own_keys(probabilities: Tensor, call: Positions) -> Tensor:
    """Returns attention maps (batch, heads, queries, keys) without prompts; of a window, as many keys."""
    found = probabilities.shape[-1]
    whole = functional.pad(probabilities, (max(0, int(call.keys) - found), 0))
    own = without_prompts(whole, call.padding, call.hidden, 3)
    return own[..., max(0, own.shape[-1] - found) :]


def shortened_but_for_last(output: Any, call: Positions) -> Any:
    """Returns what an encoder returned without states of prompts, but for the last ones, which are read.

    They come first in what it returns.
    """
    if isinstance(output, dict):
        for key in list(output)[1:]:
            output[key] = shortened(output[key], call, key)
        return output
    if isinstance(output, tuple):
        return (output[0], *shortened(output[1:], call))
    return output
