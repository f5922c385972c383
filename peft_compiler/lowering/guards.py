"""Guards: what a local graph took for granted, checked each time it runs.

A variant of a local graph is right for one control flow. Where the control flow hung on a
value (a shape comparison, a `None`, the length of a tuple), the graph asks again. A guard
that fails before anything was changed leads to another variant; one that fails later
cannot, because running the forward again would change a cache twice: it is an error.
"""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from peft_compiler.errors import LoweringError


class GuardFailed(Exception):  # noqa: N818  (a signal, not an error)
    """This variant does not fit the call; another one will."""


def expect_equal(value: Any, expected: Any) -> None:
    """The forward branched on `value`, or used it as a plain number."""
    if value != expected:
        raise GuardFailed


def expect_true(value: Any) -> None:
    """The forward took the branch."""
    if not value:
        raise GuardFailed


def expect_false(value: Any) -> None:
    """The forward did not take the branch."""
    if value:
        raise GuardFailed


def expect_none(value: Any) -> None:
    """The forward saw None here."""
    if value is not None:
        raise GuardFailed


def expect_length(value: Any, length: int) -> None:
    """The forward unpacked this many items."""
    if len(value) != length:
        raise GuardFailed


def expect_kind(value: Any, is_tensor: bool) -> None:
    """The forward was given a tensor, or a plain number: a cache counts in either, by its class and state."""
    if isinstance(value, Tensor) is not is_tensor:
        raise GuardFailed


Guard = Callable[..., None]


def guard_of(value: Any) -> tuple[Any, ...]:
    """Returns the guard that lets no other value pass, and what it expects."""
    if value is None:
        return (expect_none,)
    if isinstance(value, bool):
        return (expect_true if value else expect_false,)
    return expect_equal, value


def _after_a_change(guard: Guard) -> Guard:
    def late(value: Any, *expected: Any) -> None:
        try:
            guard(value, *expected)
        except GuardFailed:
            _fail_late(guard.__name__, value, expected)

    late.__name__ = late.__qualname__ = f"{guard.__name__}_late"
    return late


def _fail_late(guard: str, value: Any, expected: tuple[Any, ...]) -> NoReturn:
    raise LoweringError(
        f"a rewritten forward met a value that it had not met before ({guard}: found {value!r:.80}, had "
        f"{expected!r:.80}) after it had changed a cache or an input; call it with a fresh cache"
    )


_FIRST = (expect_equal, expect_true, expect_false, expect_none, expect_length, expect_kind)
LATE: dict[Guard, Guard] = {guard: _after_a_change(guard) for guard in _FIRST}
"""Each guard, and its form once something was changed."""

EARLY: dict[Guard, Guard] = {late: guard for guard, late in LATE.items()}

GUARDS = frozenset(LATE) | frozenset(EARLY)


def regions() -> tuple[object, ...]:
    """Returns the modes of gradient and autocast that ops run under, which no graph can change."""
    return torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")


def expect_regions(begun: tuple[object, ...], where: str) -> None:
    """Checks that a forward is still under the modes which it began under.

    Raises:
        LoweringError: If it changed them itself: ops and modules of the graph would run under others.
    """
    if regions() != begun:
        raise LoweringError(
            f"{where} changes autocast or gradient mode within its forward: no graph can say that"
        )
