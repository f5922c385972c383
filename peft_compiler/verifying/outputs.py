"""Runs models and compares what they return."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from math import inf
from typing import Any, cast

import torch
from torch import Tensor, nn

from peft_compiler.lowering.modes import keep_modes


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
    """Returns the tensors that `model` returns in eval mode, without gradients.

    Starts at the same random state every time, for models that draw in eval mode too: noise, or which
    patches to hide. Whoever calls keeps its own.
    """
    torch.manual_seed(0)
    with torch.no_grad():
        keep_modes(model.eval())
        return list(tensors_of(model(**inputs)))


def equal(these: list[Tensor], those: list[Tensor]) -> bool:
    """Whether all tensors are equal, value by value; NaN equals NaN."""
    return distance(these, those) == 0


def distance(these: list[Tensor], those: list[Tensor]) -> float:
    """Returns the largest difference, relative to the largest value of its tensor.

    Infinite if the shapes differ, or the places of values that are not finite.
    """
    if len(these) != len(those):
        return inf
    return max((_distance(a, b) for a, b in zip(these, those, strict=True)), default=0.0)


def _distance(this: Tensor, that: Tensor) -> float:
    if this.shape != that.shape or not torch.equal(this.isfinite(), that.isfinite()):
        return inf
    finite = that.isfinite()
    if not finite.any():
        return 0.0
    a, b = this[finite].double(), that[finite].double()
    return float((a - b).abs().max() / b.abs().max().clamp(min=torch.finfo(torch.float32).tiny))


def tolerance(tensors: list[Tensor]) -> float:
    """Returns how far rounding may put apart what is equal in exact arithmetic: half of the digits."""
    return max((torch.finfo(tensor.dtype).eps ** 0.5 for tensor in tensors), default=0.0)
