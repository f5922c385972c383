"""Masks are made longer for prompts, in every form that a mask has."""

import pytest
import torch

from peft_compiler.errors import LoweringError
from peft_compiler.lowering.prompted_mask import extended_mask


def test_prompts_see_each_other_and_the_tokens_as_the_mask_is_made() -> None:
    causal = torch.ones(1, 1, 2, 2, dtype=torch.bool).tril()
    assert extended_mask(causal, 1, first=True).int().tolist() == [[[[1, 0, 0], [1, 1, 0], [1, 1, 1]]]]
    both_ways = torch.tensor([[[[True, False], [True, False]]]])
    both_ways = both_ways | torch.tensor([[[[False, True], [False, False]]]])
    assert extended_mask(both_ways, 1, first=True).int().tolist() == [[[[1, 1, 1], [1, 1, 1], [1, 1, 0]]]]
    assert extended_mask(causal[..., -1:, :], 1, first=False).int().tolist() == [[[[1, 1, 1]]]]


def test_a_mask_of_another_kind_is_refused() -> None:
    with pytest.raises(LoweringError, match=r"a soft prompt cannot extend a mask of type str; pass a tensor"):
        extended_mask("causal", 1, first=True)
