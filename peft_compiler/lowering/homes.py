"""Where inserted parameters live: on the device of their host, in a precise type or that which the spec says.

What learns is kept in float32 beside weights of half precision. There the steps of an optimiser would be
rounded away: next to 1.0 the numbers of bfloat16 lie 0.008 apart.
"""

from itertools import chain

import torch
from torch import nn

from peft_compiler.quantised import is_quantised


def put_home(
    module: nn.Module, host: nn.Module, compiled: nn.Module, chosen: str | None, is_copy: bool
) -> nn.Module:
    """Moves what is to be inserted, in place, to the device of its host, and into its own type; returns it.

    Args:
        module: What is to be inserted.
        host: The module that it joins.
        compiled: The model, which tells what its host does not.
        chosen: Name of the type that the spec says, or None.
        is_copy: Whether it is a copy of the host, whose statistics then stay in the type of the host's.
    """
    nearest = next(chain(host.parameters(), host.buffers(), compiled.parameters()))
    weight = next(chain(host.parameters(), compiled.parameters()))
    dtype = precise_type(weight.dtype) if chosen is None else getattr(torch, chosen)
    if not is_copy:
        return module.to(nearest.device, dtype)
    for parameter in module.to(nearest.device).parameters():
        parameter.data = parameter.data.to(dtype)
    return module


def precise_type(weight: torch.dtype) -> torch.dtype:
    """Returns the type in which what is inserted beside a weight, or its codes, is kept by default.

    >>> precise_type(torch.bfloat16), precise_type(torch.int8), precise_type(torch.float64)
    (torch.float32, torch.float32, torch.float64)
    """
    return torch.float64 if weight == torch.float64 else torch.float32


def differs(module: nn.Module, host: nn.Module, types: frozenset[torch.dtype]) -> bool:
    """Whether what is inserted keeps another type than what flows through its host may have.

    Args:
        module: What is inserted.
        host: The module that it joins.
        types: Those of the weights of the base: a model may hold some that are more precise than others.
    """
    own = frozenset(each.dtype for each in module.parameters() if each.is_floating_point())
    return keeps_codes(host) or bool(own and own != types)


def types_in(model: nn.Module) -> frozenset[torch.dtype]:
    """Returns the types of the weights of a model that are numbers, not codes."""
    weights = (parameter for parameter in model.parameters() if parameter.is_floating_point())
    return frozenset(weight.dtype for weight in weights if weight.element_size() > 1)


def keeps_codes(host: nn.Module) -> bool:
    """Whether a module, or one within it, keeps codes, so that it has no type to share with what joins it."""
    return any(is_quantised(tensor) for tensor in chain(host.parameters(), host.buffers()))
