"""A delta on the rows of one role leaves every other row at exactly zero."""

import pytest
import torch

from peft_compiler.lowering.rows import on_rows, put_rows, take_rows
from peft_compiler.site import Rows

LAYOUTS = {
    "one run": [4, 5, 6],
    "a third": [0, 1, 2, 3],
    "interleaved by head": [1, 2, 5, 6, 9, 10],
    "grouped, irregular": [0, 1, 2, 7, 8, 11],
}


@pytest.mark.parametrize("indices", LAYOUTS.values(), ids=LAYOUTS)
def test_rows(indices: list[int]) -> None:
    rows = Rows.of(indices, total=12)
    delta = torch.randn(2, 3, len(indices))
    placed = on_rows(delta, rows.runs, rows.total)
    expected = torch.zeros(2, 3, 12)
    expected[..., indices] = delta
    assert torch.equal(placed, expected)


@pytest.mark.parametrize("indices", LAYOUTS.values(), ids=LAYOUTS)
def test_rows_are_taken_out_and_put_back(indices: list[int]) -> None:
    rows = Rows.of(indices, total=12)
    whole, changed = torch.randn(2, 3, 12), torch.randn(2, 3, len(indices))
    assert torch.equal(take_rows(whole, rows.runs), whole[..., indices])
    expected = whole.clone()
    expected[..., indices] = changed
    assert torch.equal(put_rows(whole, changed, rows.runs), expected)
