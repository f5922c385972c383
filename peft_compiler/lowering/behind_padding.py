"""Where prompts stand in rows that are padded on the left: behind the padding, next to their tokens.

So a row in a batch sees its prompts from as far as it does alone, whatever counts positions between
them: a sliding window, a table of distances, a recurrence. Prompts are put in front of all rows first,
(batch, n + T), and each row is then arranged anew; what is returned is taken back in the user's order.
"""

import torch
from torch import Tensor


def behind_padding(values: Tensor, padding: Tensor | None, length: int, axis: int, rows: int = 0) -> Tensor:
    """Returns values that begin with those of `length` prompts, arranged as each row has them.

    Args:
        values: One value for each position along `axis`: first the prompts', then the user's.
        padding: Positions before the tokens of each row (batch), or None where no row has any.
        length: Number of prompts.
        axis: That of the positions.
        rows: The axis of the batch.
    """
    if padding is None:
        return values
    at, start = _positions(values.shape[axis], padding), padding.unsqueeze(-1)
    prompts = torch.where(at < start + length, at - start, at)
    return _taken(values, torch.where(at < start, at + length, prompts), axis, rows)


def without_prompts(values: Tensor, padding: Tensor | None, length: int, axis: int) -> Tensor:
    """Returns the values of the user's own positions, in their order, of what `behind_padding` arranged."""
    own = values.shape[axis] - length
    if padding is None or not length:
        return values.narrow(axis, length, own)
    at = _positions(own, padding)
    return _taken(values, at + length * (at >= padding.unsqueeze(-1)), axis, rows=0)


def _positions(count: int, padding: Tensor) -> Tensor:
    return torch.arange(count, device=padding.device)


def _taken(values: Tensor, positions: Tensor, axis: int, rows: int) -> Tensor:
    """Returns the values at `positions` (batch, n) along an axis, other ones for each row."""
    shape = [1] * values.dim()
    shape[rows], shape[axis] = positions.shape
    whole, taken = list(values.shape), list(values.shape)
    if values.shape[rows] == 1:  # one for all
        whole[rows] = taken[rows] = positions.shape[0]
    taken[axis] = positions.shape[1]
    # By gather, since take_along_dim lets torch.compile make a graph for each length.
    return values.expand(whole).gather(axis, positions.view(shape).to(values.device).expand(taken))
