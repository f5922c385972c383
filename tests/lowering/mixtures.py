"""Compiled mixtures of LoRAs that no longer are where they start, for the tests of what runs twice."""

import torch
from torch import nn

import peft_compiler as pc
from peft_compiler.methods._loaded import loaded_buffers
from tests import zoo

SPEC = "x-lora r=2 depth=2 width=16 dropout=0 scaling_pass=0.5 on q,v"


def mixed(name: str, spec: str = SPEC, attention: str | None = None) -> tuple[nn.Module, nn.Module]:
    """Returns a model of the zoo, and what is compiled of it with LoRAs that do something."""
    base = zoo.build(name, attention)
    tuned = pc.compile(base, spec, zoo.inputs(name))
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*(p for p in tuned.parameters() if p.requires_grad), *loaded_buffers(tuned)):
            tensor.add_(torch.randn(tensor.shape, generator=draws), alpha=0.3)
    return base, tuned
