"""Compares a compiled model with what peft makes of the same base and the same values."""

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

import peft_compiler as pc
from peft_compiler.lowering.compilation import compilation_of
from tests import zoo

Copies = Mapping[str, str]
"""Which tensor of a layer of peft's holds which tensor of an inserted module, by dotted names."""


def compare(
    name: str,
    spec: str,
    config: Any,
    tensors: Copies,
    reshape: Callable[[str, Tensor], Tensor] = lambda _, tensor: tensor,
    gradients: Callable[[str, Tensor], Tensor] | None = None,
) -> None:
    """Asserts that outputs are equal to 1e-5 and gradients to 1e-4.

    Args:
        name: A model of the zoo.
        spec: What is compiled.
        config: The same for peft.
        tensors: Which tensor is which.
        reshape: Gives peft's layout, by name, of a tensor of ours.
        gradients: The same for its gradient, where that differs.
    """
    base = zoo.build(name)
    ours, theirs = pc.compile(base, spec, zoo.inputs(name)), by_peft(base, config)
    pairs = [pair for insertion in layers_of(ours, theirs) for pair in paired(*insertion, tensors)]
    adapted = {module for module in theirs.modules() if isinstance(module, BaseTunerLayer)}
    assert len(pairs) == len(adapted) * len(tensors) > 0
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, mine, other in pairs:
            if mine.requires_grad:
                mine.add_(torch.randn(mine.shape, generator=draws), alpha=0.1)
            other.copy_(reshape(key, mine))
    logits = [model(**zoo.inputs(name)).logits for model in (ours, theirs)]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)
    assert (logits[0] - base(**zoo.inputs(name)).logits).abs().max() > 1e-3
    for output in logits:
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    for key, mine, other in pairs:
        if mine.requires_grad:
            assert mine.grad is not None
            expected = (gradients or reshape)(key, mine.grad)
            torch.testing.assert_close(expected, other.grad, atol=1e-4, rtol=1e-4)


def by_peft(base: nn.Module, config: Any) -> Any:
    """Returns what peft makes of a copy of the base."""
    with warnings.catch_warnings():
        # It asks transformers for what is about to be renamed.
        warnings.simplefilter("ignore")
        return peft.get_peft_model(copy.deepcopy(base), config).eval()


def layers_of(ours: nn.Module, theirs: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """Returns each inserted module with the layer of peft's at the same place."""
    inner = theirs.get_base_model()
    insertions = compilation_of(ours).plan.insertions
    return [(ours.get_submodule(i.path), inner.get_submodule(i.site.path)) for i in insertions]


def paired(mine: nn.Module, other: nn.Module, tensors: Copies) -> list[tuple[str, Tensor, Tensor]]:
    """Returns the tensors of an inserted module, each with that of peft's layer, by our names."""
    return [(name, tensor_at(mine, name), tensor_at(other, theirs)) for name, theirs in tensors.items()]


def tensor_at(module: nn.Module, name: str) -> Tensor:
    """Returns the parameter or buffer of a dotted name."""
    value: Any = module
    for part in name.split("."):
        value = (
            value[part]
            if isinstance(value, nn.ModuleDict | nn.ParameterDict | dict)
            else getattr(value, part)
        )
    return value
