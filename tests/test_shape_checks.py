"""The shapes that annotations say are those that there are, or a call fails."""

import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor, nn

from peft_compiler.methods._bottleneck import Bottleneck
from peft_compiler.methods._prompts import Prompts
from tests.shape_checks import checked, says_shapes


def test_what_says_shapes_is_checked() -> None:
    adapter = Bottleneck(nn.Linear(6, 2), "relu", nn.Linear(2, 6))
    assert adapter(torch.ones(3, 6)).shape == (3, 6)
    adapter.up = nn.Linear(2, 7)
    with pytest.raises(TypeCheckError, match=r"return value of .*Bottleneck\.forward"):
        adapter(torch.ones(3, 6))


def test_what_a_tuple_holds_is_checked() -> None:
    assert len(Prompts(torch.ones(2, 5, 4), torch.ones(2, 5, 3))()) == 2
    with pytest.raises(TypeCheckError, match=r"return value of .*Prompts\.forward"):
        Prompts(torch.ones(2, 5, 4), torch.ones(2, 6, 3))()


def test_what_says_no_shape_is_left_alone() -> None:
    def plain(x: Tensor) -> Tensor:
        return x

    def shaped(x: Float[Tensor, "n n"]) -> Tensor:
        return x

    assert not says_shapes(plain)
    assert says_shapes(shaped)
    with pytest.raises(TypeCheckError, match="parameters of"):
        checked(shaped)(torch.ones(2, 3))
