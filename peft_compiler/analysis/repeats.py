"""Runs an op once for all operands that are alike: equal layers cost little more than the first of them.

A result without data is nothing but its shape, so an op that made a new tensor need not run
again on operands of the same shapes. One that gave a view has to, but needs no watching.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack

from peft_compiler.analysis.meta_mode import MetaFloats, memory_of, tensors_in

_TENSORS = frozenset({Tensor, nn.Parameter})
_SEQUENCES = frozenset({tuple, list, torch.Size})
_CONSTANTS = frozenset(
    {
        int, float, bool, complex, str, type(None), type(...), torch.dtype, torch.device, torch.layout,
        torch.memory_format,
    }
)  # fmt: skip


class _Unlike(Exception):  # noqa: N818  (a signal, not an error)
    """An operand is like no other: an object of which only Python knows what it does."""


@dataclass(frozen=True, slots=True)
class _Made:
    """A new tensor, of which the shape is all that there is."""

    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class _Viewed:
    """Operands again, or views of them."""


class Repeats:
    """What the ops run so far gave.

    Args:
        floats: The mode that they run in, which counts the values that were made up.
    """

    def __init__(self, floats: MetaFloats) -> None:
        self._floats = floats
        self._results: dict[Hashable, _Made | _Viewed] = {}

    def run(
        self,
        op: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        operands: Sequence[Tensor],
    ) -> Any:
        """Returns what an op gives; `operands` are the tensors among its arguments."""
        key = _key(op, args, kwargs, operands)
        known = None if key is None else self._results.get(key)
        if known is not None:
            # The mode had nothing to do the first time, and takes longer than the op.
            with torch._C._DisableTorchDispatch():  # pyright: ignore[reportPrivateUsage]
                if isinstance(known, _Made):
                    return torch.empty_strided(known.shape, known.strides, dtype=known.dtype, device="meta")
                return op(*args, **kwargs)
        versions = [operand._version for operand in operands]
        made_up = self._floats.faked
        out = op(*args, **kwargs)
        written = versions != [operand._version for operand in operands]
        if key is not None and not written and made_up == self._floats.faked:
            result = _result(out, operands)
            if result is not None:
                self._results[key] = result
        return out


def _key(
    op: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], operands: Iterable[Tensor]
) -> Hashable | None:
    """Returns what decides over the result of an op; None where that cannot be told."""
    # With gradients or under vmap a result is more than its shape; without a meta tensor it has data.
    # Its stub leaves out that outside of vmap there is nothing to see.
    within_vmap = peek_interpreter_stack() is not None  # pyright: ignore[reportUnnecessaryComparison]
    is_plain = not (torch.is_grad_enabled() or within_vmap)
    if not is_plain or not any(operand.is_meta for operand in operands):
        return None
    try:
        return (op, _described(args), *((name, _described(value)) for name, value in kwargs.items()))
    except _Unlike:
        return None


def _described(value: Any) -> Hashable:
    kind = type(value)
    if isinstance(value, Tensor):
        if kind not in _TENSORS or value.layout is not torch.strided:
            raise _Unlike
        if value.is_meta:
            return value.shape, value.stride(), value.dtype
        # The recorder keeps real tensors, so that none can have the identity of an earlier one.
        return id(value), value._version
    if kind in _CONSTANTS:
        return kind, value
    if kind in _SEQUENCES:
        return kind, *map(_described, value)
    if kind is slice:
        return kind, _described(value.start), _described(value.stop), _described(value.step)
    raise _Unlike


def _result(out: Any, operands: Sequence[Tensor]) -> _Made | _Viewed | None:
    """Returns what is to be known of a result; None where it has to be computed again."""
    memories = {memory_of(operand) for operand in operands}
    found = tensors_in(out)
    if all(tensor.is_meta for tensor in (*operands, *found)) and memories.issuperset(map(memory_of, found)):
        return _Viewed()
    if type(out) is not Tensor or not out.is_meta or out.layout is not torch.strided:
        return None
    is_new = not (out.is_conj() or out.is_neg() or memory_of(out) in memories)
    return _Made(out.shape, out.stride(), out.dtype) if is_new else None
