"""The list of breaks fits the code; `python -m tests.mutation` runs it."""

import re
from pathlib import Path

import pytest

from tests.mutation.mutant import Mutant
from tests.mutation.mutants import MUTANTS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.promise)
def test_a_break_fits_the_code(mutant: Mutant) -> None:
    source = (ROOT / "peft_compiler" / mutant.file).read_text()
    assert source.count(mutant.old) == 1
    assert mutant.old != mutant.new
    file, _, test = mutant.test.partition("::")
    assert re.search(
        rf"^def {test}\(" if test else "^def test_", (ROOT / "tests" / file).read_text(), re.MULTILINE
    )


def test_every_break_is_listed_once() -> None:
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS)
    assert len({mutant.promise for mutant in MUTANTS}) == len(MUTANTS)
