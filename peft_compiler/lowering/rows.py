"""The rows of a fused projection that play one role: taken out, put back, and a delta on them alone."""

import torch
from torch import Tensor

from peft_compiler.site import Rows


def on_rows(delta: Tensor, runs: tuple[tuple[int, int], ...], total: int) -> Tensor:
    """Returns a tensor (..., total) with `delta` (..., rows) at the rows of `runs` and zero elsewhere."""
    rows = Rows(runs, total)
    start, length = runs[0]
    if len(runs) == 1:
        return torch.nn.functional.pad(delta, (start, total - start - length))
    stride = rows.stride
    if stride is not None and total == stride * len(runs):
        periods = delta.unflatten(-1, (len(runs), length))
        return torch.nn.functional.pad(periods, (start, stride - start - length)).flatten(-2)
    pieces: list[Tensor] = []
    done = taken = 0
    for start, length in runs:
        pieces += [delta.new_zeros(*delta.shape[:-1], start - done), delta[..., taken : taken + length]]
        done, taken = start + length, taken + length
    return torch.cat([*pieces, delta.new_zeros(*delta.shape[:-1], total - done)], -1)


def take_rows(y: Tensor, runs: tuple[tuple[int, int], ...]) -> Tensor:
    """Returns the rows of `runs` of `y` (..., total), as (..., rows)."""
    pieces = [y[..., start : start + length] for start, length in runs]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, -1)


def put_rows(y: Tensor, rows: Tensor, runs: tuple[tuple[int, int], ...]) -> Tensor:
    """Returns `y` (..., total) with `rows` (..., rows) at the rows of `runs`; the others are copied."""
    pieces: list[Tensor] = []
    done = taken = 0
    for start, length in runs:
        pieces += [y[..., done:start], rows[..., taken : taken + length]]
        done, taken = start + length, taken + length
    return torch.cat([*pieces, y[..., done:]], -1)
