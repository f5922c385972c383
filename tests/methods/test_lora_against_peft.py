"""LoRA and its variants give what peft gives from the same values."""

from typing import Any

import peft
import pytest
import torch
from torch import nn

import peft_compiler as pc
from tests import zoo
from tests.methods.peft_oracle import Copies, by_peft, compare

FACTORS = {"down": "lora_A.default.weight", "up": "lora_B.default.weight"}


@pytest.mark.parametrize(
    ("name", "spec", "targets", "settings", "tensors"),
    [
        ("llama", "LoRA r=4 alpha=6 on q,v", ["q_proj", "v_proj"], {}, FACTORS),
        (
            "llama",
            "LoRA r=4 alpha=6 rank_stabilised=true on up,o",
            ["up_proj", "o_proj"],
            {"use_rslora": True},
            FACTORS,
        ),
        ("gpt2", "LoRA r=4 alpha=6 on up", ["c_fc"], {"fan_in_fan_out": True}, FACTORS),
    ],
)
def test_logits_and_gradients(
    name: str, spec: str, targets: list[str], settings: dict[str, Any], tensors: Copies
) -> None:
    compare(name, spec, peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, **settings), tensors)


def test_an_embedding() -> None:
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["embed_tokens"])
    tensors = {"down": "lora_embedding_A.default", "up": "lora_embedding_B.default"}
    compare("llama", "LoRA r=4 alpha=6 on embedding", config, tensors)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_training_from_factors_of_the_weight(init: str) -> None:
    """Both take the same three steps, although peft's base holds only what is left of the weight."""
    base = zoo.build("llama")
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"], init_lora_weights=init)
    ours = pc.compile(base, f"LoRA r=4 alpha=6 init={init} on q,v", zoo.inputs("llama"))
    theirs = by_peft(base, config)
    torch.testing.assert_close(trained(ours), trained(theirs), atol=1e-4, rtol=1e-4)


def trained(model: nn.Module) -> torch.Tensor:
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        model(**zoo.inputs("llama")).logits.square().mean().backward()
        optimiser.step()
    return model(**zoo.inputs("llama")).logits.detach()
