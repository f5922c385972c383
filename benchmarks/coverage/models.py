"""Builds a model of a type: at a few layers on the meta device, or small and with weights."""

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING

from benchmarks.coverage.completing import complete, without_timm
from benchmarks.coverage.depth import cut
from benchmarks.coverage.targets import Target
from benchmarks.coverage.widths import renumber_tokens, shrink, shrink_vocabulary
from peft_compiler.analysis.arguments import Config
from peft_compiler.analysis.meta_mode import MetaFloats

MOST_PARAMETERS = 250_000_000
"""What fits in memory beside its copies when promises are checked."""

_TIMES_COMPLETED = 8
_MISSING = re.compile(r"'(\w+)' object has no attribute '(\w+)'")


class BuildError(Exception):
    """A model of a type cannot be built; says how each attempt ended."""


def _few_layers(config: Any) -> None:
    cut(config)


def _as_it_is(config: Any) -> None:
    del config


def _small(config: Any) -> None:
    cut(config)
    shrink(config, images=True)


def _small_with_images(config: Any) -> None:
    cut(config)
    shrink(config, images=False)


def _small_with_heads(config: Any) -> None:
    cut(config)
    shrink(config, images=False, heads=8)


def _small_with_one_head(config: Any) -> None:
    cut(config)
    shrink(config, images=False, heads=1)


def _few_words(config: Any) -> None:
    cut(config)
    shrink_vocabulary(config)


ON_META: dict[str, Callable[[Any], None]] = {"few layers": _few_layers, "default": _as_it_is}
"""Ways to prepare a config for a model without weights, the best first."""

WITH_WEIGHTS: dict[str, Callable[[Any], None]] = {
    "small": _small,
    "small, images of full size": _small_with_images,
    "small, eight heads": _small_with_heads,
    "small, one head": _small_with_one_head,
    "few layers, small vocabulary": _few_words,
    "few layers": _few_layers,
    "default": _as_it_is,
}
"""The same for a model with weights."""


def on_meta(target: Target) -> Iterator[tuple[str, nn.Module]]:
    """Yields models without weights; raises what went wrong with the first if none can be built."""
    yield from _built(target, ON_META, "meta")


def with_weights(target: Target) -> Iterator[tuple[str, nn.Module]]:
    """Yields models with random weights of which none is zero."""
    for how, model in _built(target, WITH_WEIGHTS, "cpu"):
        draws = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.is_floating_point():
                    # Gates and last layers that start at zero would let no gradient through.
                    parameter.add_(torch.randn(parameter.shape, generator=draws), alpha=0.02)
        yield how, model.float()


def _built(
    target: Target, ways: dict[str, Callable[[Any], None]], device: str
) -> Iterator[tuple[str, nn.Module]]:
    default = _default_config(target)
    failures: list[Exception] = []
    for completing in (False, True):
        for how, prepare in ways.items():
            config = copy.deepcopy(default)
            if completing:
                complete(config)
            prepare(config)
            renumber_tokens(config)
            try:
                model = _with_missing_fields(target, config, device)
            except Exception as error:  # whatever a config that was cut may lead to
                failures.append(error)
                continue
            yield f"{how}, completed" if completing else how, model
    if len(failures) == 2 * len(ways):
        raise BuildError(f"{type(failures[0]).__name__}: {failures[0]}") from failures[0]


def _default_config(target: Target) -> Any:
    config = CONFIG_MAPPING[target.model_type]()
    without_timm(config)
    wanted = getattr(target.model_class, "config_class", None)
    if wanted is not None and not isinstance(config, wanted):
        config = next((each for each in Config.of(config).configs if isinstance(each, wanted)), config)
    return config


def _with_missing_fields(target: Target, config: Any, device: str) -> nn.Module:
    """Returns the model of a config; fields that its class asks for and the config lacks are added."""
    for _ in range(_TIMES_COMPLETED):
        try:
            return _model(target, copy.deepcopy(config), device)
        except AttributeError as error:
            missing = _MISSING.search(str(error))
            lacking = [
                each for each in Config.of(config).configs if missing and type(each).__name__ == missing[1]
            ]
            if not lacking or missing is None:
                raise
            for each in lacking:
                setattr(each, missing[2], _likely_value(config, missing[2]))
    return _model(target, config, device)


def _likely_value(config: Any, field: str) -> Any:
    """Returns what another config of the same model has for a field, 0 for tokens and dropout, or None."""
    values = (vars(each).get(field) for each in Config.of(config).configs)
    found = next((value for value in values if value is not None), None)
    if found is not None:
        return found
    if "dropout" in field:
        return 0.0
    return 0 if "token" in field else None


def _model(target: Target, config: Any, device: str) -> nn.Module:
    if device != "meta":
        _check_size(target, config)
    torch.manual_seed(0)
    if device == "meta":
        # What a model computes of its sizes stays real.
        with torch.device(device), MetaFloats():
            return target.model_class(config).eval()
    return target.model_class(config).eval()


def _check_size(target: Target, config: Any) -> None:
    with torch.device("meta"):
        size = sum(p.numel() for p in target.model_class(copy.deepcopy(config)).parameters())
    if size > MOST_PARAMETERS:
        raise BuildError(f"{size:,} parameters are more than the {MOST_PARAMETERS:,} that fit in memory")
