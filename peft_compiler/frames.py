"""How an op is told from others while Python runs: its name, and the instructions that led to it."""

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from types import CodeType, FrameType, FunctionType, MappingProxyType
from typing import Any

import torch
from torch import nn

_TORCH = Path(torch.__file__).parent
_MACHINERY_FOLDER = f"{Path(__file__).parent}/"
_MACHINERY_FILES = frozenset(
    str(_TORCH / name)
    for name in (
        "overrides.py",
        "_tensor.py",
        "functional.py",
        "_jit_internal.py",
        "nn/functional.py",
        "utils/_contextlib.py",
        "utils/_device.py",
        "utils/_python_dispatch.py",
    )
)


def _with_nested(code: CodeType) -> frozenset[CodeType]:
    """Returns `code` and the code of every function defined within it."""
    nested = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return frozenset({code}).union(*map(_with_nested, nested))


# Of its functions only the nested `inner`, which runs the hooks, calls forward as well.
CALL_IMPL: frozenset[CodeType] = _with_nested(nn.Module._call_impl.__code__)  # pyright: ignore[reportPrivateUsage]
"""The code that calls a module's forward: a chain of frames starts below it."""

_ATTENTION = nn.functional.multi_head_attention_forward


def call_chain(
    frame: FrameType | None, stop: AbstractSet[CodeType] = CALL_IMPL
) -> tuple[tuple[str, int], ...]:
    """Returns (function, instruction offset) of each active frame below `stop`, outermost first.

    Frames that only pass a call on, such as this package's own and torch's Python wrappers
    of ops, are left out. `multi_head_attention_forward` computes attention itself, and stays.

    Args:
        frame: Where to start: the innermost frame.
        stop: The chain ends before the first frame that runs one of these.
    """
    chain: list[tuple[str, int]] = []
    while frame is not None and frame.f_code not in stop:
        code = frame.f_code
        if code is _ATTENTION.__code__ or not _is_machinery(code.co_filename):
            chain.append((code.co_qualname, frame.f_lasti))
        frame = frame.f_back
    return tuple(reversed(chain))


def _is_machinery(filename: str) -> bool:
    return filename in _MACHINERY_FILES or filename.startswith(_MACHINERY_FOLDER)


def op_name(function: Callable[..., Any]) -> str:
    """Returns the name that an `Anchor` gives the op which a torch function mode sees.

    >>> op_name(torch.Tensor.__matmul__), op_name(torch.Tensor.add_)
    ('matmul', 'add_')
    """
    name: str = getattr(function, "__name__", type(function).__name__)
    if name in ("__get__", "__set__"):
        return getattr(getattr(function, "__self__", None), "__name__", name)
    return name.strip("_") if name.startswith("__") and name.endswith("__") else name


def _opened(function: FunctionType) -> FunctionType:
    """Returns `function` without its own hand-over to function modes, so that they see what it calls.

    It runs the same code object, so chains of instructions stay the same.
    """
    asks = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    namespace = {**function.__globals__, **dict.fromkeys(asks, _never)}
    opened = FunctionType(function.__code__, namespace, function.__name__, function.__defaults__)
    opened.__kwdefaults__ = function.__kwdefaults__
    return opened


def _never(*_: object) -> bool:
    return False


OPENED: Mapping[Any, Callable[..., Any]] = MappingProxyType({_ATTENTION: _opened(_ATTENTION)})
"""What to call in place of a composite that holds places of its own: queries and keys meet within it."""
