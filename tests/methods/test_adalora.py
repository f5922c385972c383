"""What AdaLoRA alone promises, and that peft computes the same."""

import peft
import pytest
import torch
from torch import Tensor, nn

from peft_compiler.methods import AdaLoRA
from peft_compiler.testing.places import examples
from tests.methods.peft_oracle import compare

EXAMPLE = examples()["linear"]


def test_the_update_is_scale_p_lambda_q() -> None:
    module = AdaLoRA(r=2, alpha=6).build(EXAMPLE.site, EXAMPLE.host, torch.Generator().manual_seed(0))
    nn.init.normal_(module.values)
    expected = 3.0 * module.left @ torch.diag(module.values) @ module.right
    torch.testing.assert_close(module.delta(), expected)
    torch.testing.assert_close(module(EXAMPLE.x), EXAMPLE.x @ expected.T)


def test_what_is_left_open_depends_on_r() -> None:
    filled = AdaLoRA(r=12).at(EXAMPLE.site)
    assert (filled.target_r, filled.alpha) == (8, 12.0)
    assert AdaLoRA(r=1).at(EXAMPLE.site).target_r == 1


def test_what_does_not_fit_is_refused_with_the_reason() -> None:
    assert list(AdaLoRA(r=7).problems(EXAMPLE.site)) == [
        "r=7 exceeds the rank of a 6 x 8 weight: take r <= 6"
    ]
    with pytest.raises(ValueError, match="target_r=5 is above r=4, from which ranks are only cut"):
        AdaLoRA(r=4, target_r=5)


def test_which_triplets_are_in_use_is_saved_and_not_trained() -> None:
    module = AdaLoRA(r=2).build(EXAMPLE.site, EXAMPLE.host, torch.Generator())
    assert set(module.state_dict()) == {"left", "values", "right", "kept"}
    assert {name for name, _ in module.named_parameters()} == {"left", "values", "right"}


def test_logits_and_gradients_are_peft_s() -> None:
    config = peft.AdaLoraConfig(
        init_r=4, target_r=2, lora_alpha=6, total_step=10, target_modules=["q_proj", "down_proj"]
    )
    tensors = {"left": "lora_B.default", "values": "lora_E.default", "right": "lora_A.default"}
    compare("llama", "AdaLoRA r=4 alpha=6 on q,down", config, tensors, as_peft_has_it)


def as_peft_has_it(name: str, tensor: Tensor) -> Tensor:
    return tensor.unsqueeze(-1) if name == "values" else tensor
