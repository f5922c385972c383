"""The axis that counts examples is told by its length, where nothing else is as long."""

import pytest
import torch
from torch import nn

from peft_compiler.analysis.capture import capture
from peft_compiler.analysis.roles.batches import find_batch_axis


class Shaped(nn.Module):
    """Gives its input (examples, positions, width) back in another shape."""

    def __init__(self, *shape: int, swapped: bool = False) -> None:
        super().__init__()
        self.shape = shape
        self.swapped = swapped

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.transpose(0, 1) if self.swapped else x).reshape(self.shape) * 2


def axis_of(module: Shaped, *given: int) -> int | None:
    graph = capture(module, {"x": torch.zeros(given)})
    return find_batch_axis(graph, next(iter(graph.outputs.values())))


@pytest.mark.parametrize(
    ("module", "axis"),
    [
        (Shaped(2, 7, 4), 0),
        (Shaped(7, 2, 4, swapped=True), 1),
        (Shaped(2, 1, 7, 4), 0),
        (Shaped(2, 14, 2), 0),
    ],
)
def test_the_examples_have_an_axis_of_their_own(module: Shaped, axis: int) -> None:
    assert axis_of(module, 2, 7, 4) == axis


@pytest.mark.parametrize("module", [Shaped(14, 4), Shaped(14, 2, 2), Shaped(2, 28), Shaped(28, 1, 2)])
def test_a_flattened_batch_is_no_proof(module: Shaped) -> None:
    assert axis_of(module, 2, 7, 4) is None


def test_as_many_examples_as_positions_are_no_proof() -> None:
    assert axis_of(Shaped(3, 3, 4), 3, 3, 4) is None
    assert axis_of(Shaped(7, 1, 4), 1, 7, 4) is None
    assert axis_of(Shaped(1, 7, 4), 1, 7, 4) == 0
