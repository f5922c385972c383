"""The search for garbage is off within, and as it was afterwards."""

import gc
from collections.abc import Iterator

import pytest

from peft_compiler.analysis.garbage import no_garbage


@pytest.fixture(params=[True, False], ids=["on", "off"])
def was_on(request: pytest.FixtureRequest) -> Iterator[bool]:
    before = gc.isenabled()
    (gc.enable if request.param else gc.disable)()
    yield request.param
    (gc.enable if before else gc.disable)()


def test_it_is_off_within_and_as_before_after(was_on: bool) -> None:
    with no_garbage():
        assert not gc.isenabled()
    assert gc.isenabled() is was_on


def test_an_error_leaves_it_as_it_was(was_on: bool) -> None:
    with pytest.raises(ZeroDivisionError), no_garbage():
        1 / 0  # noqa: B018  (for its error)
    assert gc.isenabled() is was_on
