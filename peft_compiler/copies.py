"""Copies of modules whose forward was exchanged on the object, as trainers do it."""

import copy
from collections.abc import Mapping
from types import MethodType
from typing import Any, TypeVar

from torch import nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)
"""The class of a model, which what is made of it has too."""


def copied(model: AnyModule, memo: dict[int, Any]) -> AnyModule:
    """Returns a deep copy of a model, with `memo` as `copy.deepcopy` has it, whose forwards are its own.

    A function in the place of a module's forward may hold that module itself, to call what the forward
    was. The copy would have the same function, and so run the original. There the forward of the
    module's class takes its place again.
    """
    new = copy.deepcopy(model, memo)
    for path, module in model.named_modules():
        if holds_its_module(module):
            new.get_submodule(path).__dict__.pop("forward", None)
    return new


def own_state(module: nn.Module) -> Mapping[str, Any]:
    """Returns the attributes of a module that a copy of it, or a file, may have."""
    left = {"forward"} if holds_its_module(module) else set[str]()
    return {name: value for name, value in module.__dict__.items() if name not in left}


def holds_its_module(module: nn.Module) -> bool:
    """Whether a forward was put on a module that calls, as a variable of its own, a method of that module.

    What is merely bound to the module, or a part of a call of it, is bound anew when it is copied.
    """
    forward = module.__dict__.get("forward")
    function = getattr(forward, "__func__", forward)
    cells = getattr(function, "__closure__", None) or ()
    return any(
        isinstance(cell.cell_contents, MethodType) and cell.cell_contents.__self__ is module for cell in cells
    )
