"""Runs models and compares what they return."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn


def tensors_of(output: Any) -> Iterator[Tensor]:
    """Yields the floating-point tensors in what a model returned, but for those in caches."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in cast("Mapping[Any, Any]", output).values():
            yield from tensors_of(value)
    elif isinstance(output, (list, tuple)):
        for value in cast("list[Any]", output):
            yield from tensors_of(value)
    elif is_dataclass(output):
        for field in fields(output):
            yield from tensors_of(getattr(output, field.name))


def run(model: nn.Module, inputs: Mapping[str, Any]) -> list[Tensor]:
    """Returns the tensors that `model` returns in eval mode, without gradients."""
    with torch.no_grad():
        return list(tensors_of(model.eval()(**inputs)))


def equal(these: list[Tensor], those: list[Tensor]) -> bool:
    """Whether all tensors are equal, value by value; NaN equals NaN."""
    return len(these) == len(those) and all(
        a.shape == b.shape
        and torch.equal(a.isnan(), b.isnan())
        and torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(these, those, strict=True)
    )


def distance(these: list[Tensor], those: list[Tensor]) -> float:
    """Returns the largest difference, relative to the largest value; infinite if shapes differ."""
    if len(these) != len(those) or any(a.shape != b.shape for a, b in zip(these, those, strict=False)):
        return float("inf")
    if not any(tensor.numel() for tensor in those):
        return 0.0
    pairs = [(a.double(), b.double()) for a, b in zip(these, those, strict=True) if a.numel()]
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-6)) for a, b in pairs)


def tolerance(tensors: list[Tensor]) -> float:
    """Returns how far rounding may put apart what is equal in exact arithmetic: half of the digits."""
    return max((torch.finfo(tensor.dtype).eps ** 0.5 for tensor in tensors), default=0.0)
