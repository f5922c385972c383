"""Other objects on the same memory, for weights of any class."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from peft_compiler.lowering.snapshots import parts_of

_OF_A_MODULE = ("_parameters", "_buffers", "_modules")


def on_same_storage(parameter: nn.Parameter) -> nn.Parameter:
    """Returns a new parameter of the same class that shares the memory of `parameter`, frozen."""
    if _is_plain(parameter):
        return nn.Parameter(parameter.detach(), requires_grad=False)
    return Tensor._make_subclass(type(parameter), parameter.data, False)  # pyright: ignore[reportPrivateUsage]


def kept_by(parameter: nn.Parameter) -> Mapping[str, Any]:
    """Returns what a parameter of a class of its own keeps beside its data, such as scales, by name."""
    return {} if _is_plain(parameter) else vars(parameter)


def tensors_beside(module: nn.Module) -> Iterator[Tensor]:
    """Yields the tensors that a module, or a parameter of it, keeps in attributes of its own.

    Quantised layers keep scales, and their codes once more, where `parameters` does not list them.
    """
    owners = [vars(module), *(kept_by(parameter) for parameter in module.parameters(recurse=False))]
    seen: set[int] = set()
    for owner in owners:
        for name, value in owner.items():
            if name not in _OF_A_MODULE:
                yield from (found for found in parts_of(value, seen) if isinstance(found, Tensor))


def _is_plain(parameter: nn.Parameter) -> bool:
    """Whether detaching a parameter gives all of it: a wrapper is made of tensors that it detaches itself."""
    return type(parameter) is nn.Parameter or is_traceable_wrapper_subclass(parameter)
