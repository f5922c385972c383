"""Ops on like operands run once; nothing else is ever taken for a repeat."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from peft_compiler.analysis.capture import capture
from peft_compiler.analysis.meta_mode import MetaFloats, tensors_in
from peft_compiler.analysis.module_graph import fact
from peft_compiler.analysis.repeats import Repeats


class Counted:
    """An op that counts how often it runs."""

    def __init__(self, op: Callable[..., Any]) -> None:
        self.op, self.runs = op, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.runs += 1
        return self.op(*args, **kwargs)


def runs(op: Callable[..., Any], *calls: tuple[Any, ...], **settings: Any) -> list[Any]:
    """Returns how often an op ran for the calls, and then what each gave."""
    counted, floats = Counted(op), MetaFloats()
    repeats = Repeats(floats)
    with torch.no_grad(), floats:
        found = [repeats.run(counted, args, settings, tensors_in(args)) for args in calls]
    return [counted.runs, *found]


def bare(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def described(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def test_an_op_runs_once_for_all_operands_that_are_alike() -> None:
    calls = [(bare(2, 5, 8), bare(6, 8)) for _ in range(3)]
    times, first, *others = runs(F.linear, *calls)
    assert times == 1
    assert all(described(other) == described(first) for other in others)
    assert len({id(tensor) for tensor in (first, *others)}) == 3


def test_what_was_laid_out_otherwise_comes_out_so_again() -> None:
    calls = [(bare(4, 6).t(),) for _ in range(2)]
    times, first, second = runs(torch.exp, *calls)
    assert (times, second.stride()) == (1, first.stride()) == (1, (1, 6))


@pytest.mark.parametrize(
    ("op", "one", "other"),
    [
        pytest.param(torch.add, (bare(2, 3), bare(3)), (bare(2, 4), bare(4)), id="shape"),
        pytest.param(torch.exp, (bare(4, 6),), (bare(6, 4).t(),), id="strides"),
        pytest.param(torch.neg, (bare(3),), (bare(3, dtype=torch.float16),), id="type"),
        pytest.param(torch.sum, (bare(2, 3), 0), (bare(2, 3), 1), id="constant"),
        pytest.param(torch.add, (bare(3), 1), (bare(3), True), id="type of a constant"),
        pytest.param(torch.cat, ([bare(2), bare(3)],), ([bare(3), bare(4)],), id="list"),
        pytest.param(
            lambda x, i: x[i], (bare(9, 2), (slice(0, 3),)), (bare(9, 2), (slice(0, 4),)), id="slice"
        ),
        pytest.param(
            lambda x, i: x[i], (bare(9), torch.tensor([1, 2])), (bare(9), torch.tensor([1])), id="indices"
        ),
    ],
)
def test_what_differs_is_no_repeat(op: Any, one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    times, first, second = runs(op, one, other)
    assert times == 2
    assert described(first) == described(op(*one))
    assert described(second) == described(op(*other))


def test_the_names_of_settings_tell_calls_apart() -> None:
    def laid_out(x: Tensor, rows: int = 1, width: int = 1) -> Tensor:
        return x.new_empty(rows, width)

    floats, x = MetaFloats(), bare(2)
    repeats = Repeats(floats)
    with torch.no_grad(), floats:
        rows, width = (repeats.run(laid_out, (x,), {name: 3}, [x]) for name in ("rows", "width"))
    assert (rows.shape, width.shape) == ((3, 1), (1, 3))


def test_a_view_is_made_again_of_the_operand_at_hand() -> None:
    calls = [(bare(4, 6),) for _ in range(2)]
    times, first, second = runs(torch.t, *calls)
    assert times == 2
    for view, (operand,) in zip((first, second), calls, strict=True):
        assert view.untyped_storage()._cdata == operand.untyped_storage()._cdata


def test_a_write_is_made_again_beside_a_new_result() -> None:
    def counting(x: Tensor, step: Tensor) -> Tensor:
        return x.add_(step) * 2

    calls = [(bare(3), bare(3)) for _ in range(2)]
    before = [call[0]._version for call in calls]
    times, *_ = runs(counting, *calls)
    assert times == 2
    assert [call[0]._version for call in calls] == [version + 1 for version in before]


def test_what_has_data_is_computed_again() -> None:
    calls = [(torch.tensor([1, 2]), 3), (torch.tensor([5, 6]), 3)]
    times, first, second = runs(torch.mul, *calls)
    assert (times, first.tolist(), second.tolist()) == (2, [3, 6], [15, 18])


def test_numbers_that_were_written_to_are_not_the_numbers_of_before() -> None:
    def as_many(x: Tensor, counts: Tensor) -> Tensor:
        return x.new_empty(int(counts.sum()))

    counts, x, floats = torch.tensor([1, 1]), bare(2), MetaFloats()
    repeats = Repeats(floats)
    with torch.no_grad(), floats:
        first = repeats.run(as_many, (x, counts), {}, [x, counts])
        counts.add_(1)
        second = repeats.run(as_many, (x, counts), {}, [x, counts])
    assert (first.shape, second.shape) == ((2,), (4,))


def test_every_answer_that_is_made_up_is_counted() -> None:
    def scaled(x: Tensor) -> Tensor:
        return x * x.sum().item()

    floats, x = MetaFloats(), bare(3)
    repeats = Repeats(floats)
    with torch.no_grad(), floats:
        for _ in range(3):
            repeats.run(scaled, (x,), {}, [x])
    assert floats.faked == 3


def test_an_object_that_only_python_knows_is_like_no_other() -> None:
    calls = [(bare(3), object()), (bare(3), object())]
    times, *_ = runs(lambda x, _: x + 1, *calls)
    assert times == 2


def test_a_result_that_gradients_go_through_is_computed_again() -> None:
    counted, floats = Counted(torch.exp), MetaFloats()
    repeats = Repeats(floats)
    with floats:
        found = [repeats.run(counted, (x,), {}, [x]) for x in (bare(3).requires_grad_() for _ in range(2))]
    assert counted.runs == 2
    assert all(out.requires_grad for out in found)


def test_what_runs_for_every_row_at_once_is_computed_again() -> None:
    counted, repeats = Counted(torch.exp), Repeats(MetaFloats())

    def of_row(row: Tensor) -> Tensor:
        return repeats.run(counted, (row,), {}, [row])

    with torch.no_grad():
        found = [torch.vmap(of_row)(bare(rows, 3)) for rows in (4, 5)]
    assert counted.runs == 2
    assert [out.shape for out in found] == [(4, 3), (5, 3)]


def test_layers_that_differ_in_width_keep_their_widths() -> None:
    class Tapered(nn.Module):
        """Linears one after the other, two of which are alike."""

        def __init__(self) -> None:
            super().__init__()
            self.steps = nn.ModuleList(nn.Linear(*sizes) for sizes in ((8, 6), (6, 6), (6, 6), (6, 4)))

        def forward(self, x: Tensor) -> Tensor:
            for step in self.steps:
                x = step(x).relu()
            return x

    graph = capture(Tapered(), {"x": torch.randn(2, 8)})
    linears = [node for node in graph.nodes if fact(node).op == "linear"]
    assert [fact(node).shape for node in linears] == [(2, 6), (2, 6), (2, 6), (2, 4)]
    assert [fact(node).module for node in linears] == [f"steps.{place}" for place in range(4)]
