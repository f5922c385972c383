"""Copies of modules whose forward was exchanged on the object, as trainers and a `tp_plan` do it."""

import copy
from collections.abc import Mapping
from types import CellType, FunctionType, MethodType
from typing import Any, TypeVar

from torch import nn

from peft_compiler.spread import copy_of_spread, holds_spread, is_spread, whole_of

AnyModule = TypeVar("AnyModule", bound=nn.Module)
"""The class of a model, which what is made of it has too."""

PLANNED = "forward_by_plan"
"""Where a rewritten module keeps the forward that a `tp_plan` put on it, to call it for what it was."""


def copied(model: AnyModule, memo: dict[int, Any]) -> AnyModule:
    """Returns a deep copy of a model, with `memo` as `copy.deepcopy` has it, whose forwards are its own.

    A function in the place of a module's forward may hold that module itself, to call what the forward
    was. The copy would have the same function, and so run the original. There the forward of the
    module's class takes its place again; but where a `tp_plan` spread the model, what it put there
    belongs to the weights: the copy has the same, holding the copy.
    """
    memo_of_spread(model, memo)
    new = copy.deepcopy(model, memo)
    if holds_spread(model):
        bind_spread_anew(model, new)
        return new
    for path, module in model.named_modules():
        if holds_its_module(module):
            new.get_submodule(path).__dict__.pop("forward", None)
    return new


def memo_of_spread(model: nn.Module, memo: dict[int, Any]) -> None:
    """Adds copies of those parameters to `memo`, in place, that are spread and not in it."""
    for parameter in model.parameters():
        if is_spread(parameter) and id(parameter) not in memo:
            memo[id(parameter)] = copy_of_spread(parameter)


def bind_spread_anew(model: nn.Module, new: nn.Module) -> None:
    """Gives the copy `new` of a model that is spread forwards of its own where they hold their modules."""
    if not holds_spread(model):
        return
    for path, module in model.named_modules():
        for name in ("forward", PLANNED):
            if _holds(module.__dict__.get(name), module):
                its = new.get_submodule(path)
                its.__dict__[name] = holding(module.__dict__[name], module, its)


def holding(function: FunctionType, module: nn.Module, other: nn.Module) -> FunctionType:
    """Returns a function whose own variables hold `other` where those of `function` hold `module`."""

    def of_other(value: Any) -> Any:
        if isinstance(value, MethodType) and value.__self__ is module:
            return MethodType(value.__func__, other)
        return other if value is module else value

    cells = tuple(CellType(of_other(cell.cell_contents)) for cell in function.__closure__ or ())
    new = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, cells
    )
    new.__kwdefaults__ = function.__kwdefaults__
    return new


def as_whole(module: nn.Module) -> nn.Module:
    """Returns a module like `module` that has its own parameters whole, without what a plan put on it.

    `module` itself where there is nothing of either. Modules below are not changed.
    """
    if not holds_its_module(module):
        return module
    own: dict[str, nn.Parameter | None] = module.__dict__["_parameters"]
    new = copy.copy(module)
    del new.__dict__["forward"]
    new.__dict__["_parameters"] = {
        name: None if parameter is None else nn.Parameter(whole_of(parameter.detach()), requires_grad=False)
        for name, parameter in own.items()
    }
    return new


def own_state(module: nn.Module) -> Mapping[str, Any]:
    """Returns the attributes of a module that a copy of it, or a file, may have."""
    left = {"forward"} if holds_its_module(module) else set[str]()
    return {name: value for name, value in module.__dict__.items() if name not in left}


def holds_its_module(module: nn.Module) -> bool:
    """Whether a forward was put on a module that calls, as a variable of its own, a method of that module.

    What is merely bound to the module, or a part of a call of it, is bound anew when it is copied.
    """
    return _holds(module.__dict__.get("forward"), module)


def _holds(forward: Any, module: nn.Module) -> bool:
    function = getattr(forward, "__func__", forward)
    cells = getattr(function, "__closure__", None) or ()
    return any(
        isinstance(cell.cell_contents, MethodType) and cell.cell_contents.__self__ is module for cell in cells
    )
