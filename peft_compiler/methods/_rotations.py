"""Rotations of blocks of features, by the Cayley transform of skew-symmetric matrices."""

import torch
from jaxtyping import Float
from torch import Tensor


def entries_of(block: int) -> int:
    """Returns how many numbers a skew-symmetric matrix of so many rows has: b (b - 1) / 2."""
    return block * (block - 1) // 2


def rotations(
    entries: Float[Tensor, "*stack blocks entries"], block: int
) -> Float[Tensor, "*stack blocks b b"]:
    """Returns (I - Q) (I + Q)^-1 for each block, Q being skew-symmetric with `entries` above its diagonal.

    Computed in float32 or better, as there is no solver for less.
    """
    dtype = torch.promote_types(entries.dtype, torch.float32)
    row, column = torch.triu_indices(block, block, 1, device=entries.device)
    above = torch.zeros(*entries.shape[:-1], block, block, dtype=dtype, device=entries.device)
    above[..., row, column] = entries.to(dtype)
    skew = above - above.mT
    identity = torch.eye(block, dtype=dtype, device=entries.device)
    return torch.linalg.solve(identity + skew, (identity - skew).expand_as(skew), left=False)


def rotated(
    matrix: Float[Tensor, "*experts d_out d_in"], rotation: Float[Tensor, "*experts blocks b b"]
) -> Float[Tensor, "*experts d_out d_in"]:
    """Returns every row of `matrix` with each block of its columns rotated: R w for a block w."""
    blocks = matrix.unflatten(-1, (-1, rotation.shape[-1]))
    return torch.einsum("...okj,...kij->...oki", blocks, rotation.to(matrix.dtype)).flatten(-2)
