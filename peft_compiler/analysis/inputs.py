"""Example inputs for a model, from the signature of its forward, its config and its first parameters."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peft_compiler.analysis.arguments import (
    BATCH,
    GRID,
    LENGTH,
    SMALLEST_IMAGE,
    Config,
    example,
    mask_for,
    packed_patches,
    patch_grid,
    required_example,
)

_MOST_WIDTHS = 4
_COMPUTED_IN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# Argument names of forward, in the order in which alternatives are tried, and what each takes.
_COMBINATIONS = (
    ("input_ids",),
    ("input_ids", "decoder_input_ids"),
    ("pixel_values",),
    ("pixel_values_videos",),
    ("input_ids", "pixel_values"),
    ("input_ids", "pixel_values", "attention_mask"),
    ("input_features",),
    ("input_values",),
    ("input_features", "decoder_input_ids"),
    ("input_values", "decoder_input_ids"),
    ("pixel_values", "decoder_input_ids"),
    ("input_ids", "input_features"),
    ("input_ids", "bbox", "attention_mask", "token_type_ids"),
    ("inputs_embeds",),
    ("input_ids", "bbox", "decoder_input_ids"),
    ("past_values", "future_values"),
    ("past_values", "past_time_features", "past_observed_mask", "future_values", "future_time_features"),
    ("audio_codes",),
    ("encoder_hidden_states",),
    ("input_ids", "pixel_values", "input_features", "input_values", "decoder_input_ids"),
    ("hidden_states",),
)


def candidate_inputs(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Yields keyword arguments for the model's forward, the likeliest first; the same ones every time."""
    seen: list[Any] = []
    for candidate in _of_config(model) if hasattr(model, "config") else _of_parameters(model):
        described = [(name, value.dtype, value.shape) for name, value in candidate.items()]
        if candidate and described not in seen:
            seen.append(described)
            yield {name: _as_precise_as(model, value) for name, value in candidate.items()}


def inputs_with(model: nn.Module, *names: str) -> Iterator[dict[str, Any]]:
    """Yields the same for a model with a config, with these arguments and those that must be given."""
    config, arguments = Config.of(model.config), _parameters_of_forward(model)
    generator = torch.Generator().manual_seed(0)
    chosen = _chosen([*names], _required(arguments), config, generator)
    for candidate in _in_every_form(chosen, config, model, generator):
        yield {name: _as_precise_as(model, value) for name, value in candidate.items()}


def _as_precise_as(model: nn.Module, value: Tensor) -> Tensor:
    """Returns `value` in the precision that the model computes in."""
    precise = next((p.dtype for p in model.parameters() if p.dtype in _COMPUTED_IN), torch.float32)
    return value.to(precise) if value.is_floating_point() else value


def _parameters_of_forward(model: nn.Module) -> dict[str, inspect.Parameter]:
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name: parameter
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if parameter.kind in named
    }


def _required(parameters: dict[str, inspect.Parameter]) -> list[str]:
    return [name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty]


# ---- models with a config


def _of_config(model: nn.Module) -> Iterator[dict[str, Any]]:
    config = Config.of(model.config)
    arguments = _parameters_of_forward(model)
    main = getattr(model, "main_input_name", None)
    required = _required(arguments)
    leading = [name for name in arguments if name == main or name in required]
    first = leading or list(arguments)[:1]
    if getattr(model.config, "is_encoder_decoder", False):
        first += ["decoder_input_ids", "future_values", "future_time_features"]
    generator = torch.Generator().manual_seed(0)
    masks = [name for name in arguments if name.endswith("mask")]
    for names in (first, *((*required, *names) for names in _COMBINATIONS)):
        chosen = _chosen([name for name in names if name in arguments], required, config, generator)
        yield from _in_every_form(chosen, config, model, generator)
        found = {name: mask for name in masks if (mask := mask_for(name, chosen)) is not None}
        yield {**chosen, **found} if found else {}


def _chosen(
    names: list[str], required: list[str], config: Config, generator: torch.Generator
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    # Masks last: they are about what is there.
    for name in sorted(dict.fromkeys(names), key=lambda name: name.endswith("mask")):
        is_required = name in required
        value = (
            required_example(name, config, generator, found)
            if is_required
            else example(name, config, generator)
        )
        if value is not None:
            found[name] = value
    return found


def _in_every_form(
    chosen: dict[str, Tensor], config: Config, model: nn.Module, generator: torch.Generator
) -> Iterator[dict[str, Tensor]]:
    yield chosen
    yield from _with_other_axes(chosen, config)
    yield from _with_other_widths(chosen, model, generator)
    yield from _packed(chosen, config, model, generator)


def _with_other_axes(chosen: Mapping[str, Tensor], config: Config) -> Iterator[dict[str, Tensor]]:
    """Yields the same inputs with one axis more: videos, pairs of images, sound of several channels."""
    images, sound = chosen.get("pixel_values"), chosen.get("input_values")
    if images is not None and images.dim() == 4:
        frames = config.number(1, "num_frames", "frames_per_clip")
        for count in dict.fromkeys((frames, 2)):
            yield {**chosen, "pixel_values": images.unsqueeze(1).repeat(1, count, 1, 1, 1)}
    if sound is not None and sound.dim() == 2:
        yield {**chosen, "input_values": sound.unsqueeze(1)}


def _with_other_widths(
    chosen: Mapping[str, Tensor], model: nn.Module, generator: torch.Generator
) -> Iterator[dict[str, Tensor]]:
    """Yields the same inputs with a spectrogram as wide as what the first parameters take."""
    features = chosen.get("input_features")
    if features is None or features.dim() != 3:
        return
    for width in _widths(model):
        if width != features.shape[-1]:
            other = torch.randn(*features.shape[:-1], width, generator=generator)
            yield {**chosen, "input_features": other}


def _packed(
    chosen: Mapping[str, Tensor], config: Config, model: nn.Module, generator: torch.Generator
) -> Iterator[dict[str, Tensor]]:
    """Yields the same inputs with images as a row of patches, where forward asks for their grid."""
    grids = [name for name in _parameters_of_forward(model) if name.endswith("grid_thw")]
    images = next((name for name in ("pixel_values", "hidden_states") if name in chosen), None)
    if images is None or not grids:
        return
    of_widths = (torch.randn(GRID * GRID, width, generator=generator) for width in _widths(model))
    for patches in (*packed_patches(config, generator), *of_widths):
        yield {**chosen, images: patches, grids[0]: patch_grid()}


# ---- modules without a config


def _of_parameters(model: nn.Module) -> Iterator[dict[str, Any]]:
    arguments = _parameters_of_forward(model)
    names = _required(arguments) or list(arguments)[:1]
    generator = torch.Generator().manual_seed(0)
    makers = sorted(_guesses(model, generator), key=lambda guess: guess[0])
    for _, make in makers:
        yield {name: make() for name in names}


def _guesses(model: nn.Module, generator: torch.Generator) -> Iterator[tuple[int, Callable[[], Tensor]]]:
    """Yields (rank, maker of a tensor) by what the first modules with parameters can take."""
    matrices = [
        (module, p) for module in model.modules() for p in module.parameters(recurse=False) if p.dim() > 1
    ]
    entries = [len(p) for module, p in matrices if isinstance(module, nn.Embedding)]
    if entries:
        rank = 0 if isinstance(matrices[0][0], nn.Embedding) else 2
        yield rank, lambda: torch.randint(0, min(entries), (BATCH, LENGTH), generator=generator)
    if matrices and matrices[0][1].dim() > 2:
        shape = (BATCH, matrices[0][1].shape[1], *(SMALLEST_IMAGE,) * (matrices[0][1].dim() - 2))
        yield 0, lambda: torch.randn(shape, generator=generator)
    for width in _widths(model):
        yield 1, lambda width=width: torch.randn(BATCH, LENGTH, width, generator=generator)


def _widths(model: nn.Module) -> list[int]:
    sizes = (p.shape[-1] for p in model.parameters() if p.dim())
    return list(dict.fromkeys(sizes))[:_MOST_WIDTHS]
