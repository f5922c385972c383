"""Shape annotations, checked at every call while tests run.

jaxtyping's own import hook checks all annotations of a module, and rejects methods that return
`Self`. Here only what says the shape of a tensor is checked, so that nothing else is slowed down.
"""

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any, get_args

import torch
from beartype import beartype
from jaxtyping import AbstractArray, jaxtyped

PACKAGES = ("peft_compiler.methods", "peft_compiler.testing")


def check_shapes() -> None:
    """Puts a checked function in place of each that says shapes, in every module of the packages."""
    for module in _modules():
        for name, value in list(vars(module).items()):
            if not _is_defined_in(module, value):
                continue
            if isinstance(value, FunctionType) and says_shapes(value):
                setattr(module, name, checked(value))
            elif inspect.isclass(value):
                for attribute, function in list(vars(value).items()):
                    if isinstance(function, FunctionType) and says_shapes(function):
                        setattr(value, attribute, checked(function))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `function`, raising where an argument or the result has another shape than is said."""
    strict = jaxtyped(function, typechecker=beartype)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        # torch.compile could not look into the check.
        return (function if torch.compiler.is_compiling() else strict)(*args, **kwargs)

    return call


def says_shapes(function: Callable[..., Any]) -> bool:
    """Whether an annotation of a function says the shape of a tensor."""
    return any(map(_is_shape, inspect.get_annotations(function).values()))


def _is_shape(annotation: Any) -> bool:
    if inspect.isclass(annotation) and issubclass(annotation, AbstractArray):
        return True
    return any(map(_is_shape, get_args(annotation)))


def _modules() -> Iterator[ModuleType]:
    for name in PACKAGES:
        package = importlib.import_module(name)
        yield package
        for found in pkgutil.walk_packages(package.__path__, f"{name}."):
            yield importlib.import_module(found.name)


def _is_defined_in(module: ModuleType, value: Any) -> bool:
    return getattr(value, "__module__", None) == module.__name__
