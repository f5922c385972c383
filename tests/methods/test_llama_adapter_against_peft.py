"""LLaMA-Adapter gives what peft gives from the same values.

peft has one gate for all heads and no tanh, so here tanh of every head's gate is that one. On
GPT-2 it adds what the prompts give behind the output projection, not before it as the paper
does: there the base has the identity as its output projection, which makes these the same.
"""

from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

import peft_compiler as pc
from tests import zoo
from tests.methods.peft_oracle import by_peft

LENGTH = 3
ATTENTION = {
    "gpt2": "transformer.h.{}.attn",
    "llama": "model.layers.{}.self_attn",
    "mistral": "model.layers.{}.self_attn",
}


def base_of(name: str) -> nn.Module:
    base = zoo.build(name)
    if name == "gpt2":
        for layer in range(zoo.LAYERS):
            projection = base.get_submodule(f"transformer.h.{layer}.attn.c_proj")
            with torch.no_grad():
                projection.weight.copy_(torch.eye(zoo.HIDDEN))
                projection.bias.zero_()
    return base


@pytest.mark.parametrize("name", ATTENTION)
def test_logits_and_gradients_are_peft_s(name: str) -> None:
    base = base_of(name)
    config = peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=LENGTH, adapter_layers=zoo.LAYERS)
    theirs = by_peft(base, config)
    ours = pc.compile(base, f"llama-adapter length={LENGTH}", zoo.inputs(name))
    paths = [ATTENTION[name].format(layer) for layer in range(zoo.LAYERS)]
    inserted: list[Any] = [ours.get_submodule(f"{path}.inserted.core_llama_adapter") for path in paths]
    others: list[Any] = [theirs.get_base_model().get_submodule(path) for path in paths]
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for mine, other in zip(inserted, others, strict=True):
            mine.prompts.copy_(torch.randn(mine.prompts.shape, generator=draws))
            other.adaption_prompt.copy_(mine.prompts)
            mine.gates.fill_(float(torch.rand((), generator=draws)))
            other.adaption_gate.copy_(mine.gates[:1].tanh())
    logits = [seen(model(**zoo.inputs(name)).logits) for model in (ours, theirs)]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)
    assert (logits[0] - seen(base(**zoo.inputs(name)).logits)).abs().max() > 1e-3
    for output in logits:
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    for mine, other in zip(inserted, others, strict=True):
        torch.testing.assert_close(mine.prompts.grad, other.adaption_prompt.grad[0], atol=1e-4, rtol=1e-4)
        # Of one number that is tanh of all: the sum over the heads, by the derivative of tanh.
        joint = (mine.gates.grad / (1 - mine.gates.tanh().square())).sum()
        torch.testing.assert_close(joint, other.adaption_gate.grad[0], atol=1e-4, rtol=1e-4)


def seen(logits: Tensor) -> Tensor:
    """Returns the logits at tokens that are not padding."""
    return logits[zoo.inputs("llama")["attention_mask"].bool()]
