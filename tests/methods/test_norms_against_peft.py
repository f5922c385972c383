"""Trained copies of norms give what peft's LN tuning gives from the same values."""

import peft
import pytest

from tests.methods.peft_oracle import compare

RMS, LAYER_NORM = ("weight",), ("weight", "bias")


@pytest.mark.parametrize(
    ("name", "targets", "parameters"),
    [
        ("llama", ["input_layernorm", "post_attention_layernorm", "model.norm"], RMS),
        ("gpt2", ["ln_1", "ln_2", "ln_f"], LAYER_NORM),
        ("bert", ["LayerNorm"], LAYER_NORM),
        ("t5", ["layer_norm", "final_layer_norm"], RMS),
    ],
)
def test_logits_and_gradients(name: str, targets: list[str], parameters: tuple[str, ...]) -> None:
    tensors = {parameter: f"ln_tuning_layers.default.{parameter}" for parameter in parameters}
    compare(name, "train norm", peft.LNTuningConfig(target_modules=targets), tensors)
