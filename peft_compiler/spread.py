"""Tensors that are spread over processes, as a `tp_plan` leaves weights: each process holds a part.

All processes have to call what gathers one, in the same order.
"""

from typing import TypeGuard

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate


def is_spread(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether a process holds a part of `tensor`, or knows at least that others hold it too."""
    return isinstance(tensor, DTensor)


def holds_spread(model: nn.Module) -> bool:
    """Whether a parameter of a model is spread over processes."""
    return any(map(is_spread, model.parameters()))


def whole_of(tensor: Tensor) -> Tensor:
    """Returns all of a tensor as a plain one, gathered if it is spread."""
    return tensor.full_tensor() if is_spread(tensor) else tensor


def spread_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Returns a tensor that every process has whole, spread as `like` is; its gradient comes back whole."""
    if not is_spread(like):
        return tensor
    everywhere = DTensor.from_local(
        tensor, like.device_mesh, [Replicate()] * like.device_mesh.ndim, run_check=False
    )
    return everywhere.redistribute(placements=like.placements)


def copy_of_spread(parameter: DTensor) -> nn.Parameter:
    """Returns a parameter with a copy of this process's part: `copy.deepcopy` knows no way to make one."""
    return nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
