"""Rows are kept as runs, and answer as the single rows would."""

from itertools import pairwise, product

import pytest

from peft_compiler.rows import Rows

SOME = [(), (0,), (1, 2), (0, 3), (2, 3), (0, 1, 2, 3), (0, 2, 4), (4, 5)]


@pytest.mark.parametrize("indices", SOME)
def test_runs_hold_the_rows_they_were_made_of(indices: tuple[int, ...]) -> None:
    rows = Rows.of(iter(indices), total=6)
    assert rows.indices == indices
    assert len(rows) == len(indices)
    assert all(start + length < after for (start, length), (after, _) in pairwise(rows.runs))


@pytest.mark.parametrize(("some", "others"), list(product(SOME, SOME)))
def test_rows_overlap_where_one_is_in_both(some: tuple[int, ...], others: tuple[int, ...]) -> None:
    assert Rows.of(some, 6).overlaps(Rows.of(others, 6)) is bool({*some} & {*others})
