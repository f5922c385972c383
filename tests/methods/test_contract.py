"""Every method keeps the contract, at every kind of place where it may stand. A new method adds one row."""

import pytest
import torch

from peft_compiler.methods import METHODS, DoRA, FourierFT, Method, TrainedCopy
from peft_compiler.testing import Check, contract
from peft_compiler.testing.clauses import Case
from peft_compiler.testing.places import Example
from tests.methods.cases import SPECS, STARTING_AT_CONSTANTS, every_case


def starts_from_its_host(method: Method) -> bool:
    """Whether initial values come from the host's weight."""
    return isinstance(method, DoRA | TrainedCopy) or getattr(method, "init", None) in ("pissa", "olora")


def draws_nothing(method: Method) -> bool:
    """Whether no initial value is random."""
    starts_at_zero = isinstance(method, FourierFT) and method.init == "zero"
    copies_all = starts_from_its_host(method) and not isinstance(method, DoRA)
    return isinstance(method, STARTING_AT_CONSTANTS) or starts_at_zero or copies_all


CHECKS = [
    check
    for method, places in SPECS.items()
    for check in contract(method, places, copies_host=starts_from_its_host(method))
]


def test_every_method_has_a_case() -> None:
    assert {type(method) for method in SPECS} == set(METHODS)


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_it_keeps_the_contract(check: Check) -> None:
    check()


@every_case
def test_initial_values_are_random_where_they_should_be(method: Method, example: Example) -> None:
    case = Case(method, example)
    first, other = case.build(0).state_dict(), case.build(1).state_dict()
    drawn = any(not torch.equal(first[name], other[name]) for name in first)
    assert drawn != draws_nothing(method)
