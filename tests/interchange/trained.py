"""A compiled model with parameters as if it had been trained."""

import torch
from torch import nn

from tests import zoo

SPEC = "LoRA r=2 on q,v; adapters after FFN; deep prompts length=3 on every layer"


def train(tuned: nn.Module, seed: int) -> nn.Module:
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=draws), alpha=0.1)
    return tuned.eval()


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**zoo.inputs("gpt2")).logits
