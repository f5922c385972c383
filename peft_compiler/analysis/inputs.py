"""Example inputs for a model, from the signature of its forward, its config and its first parameters."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

BATCH, LENGTH = 2, 7
# Smaller images than this leave some convolutional stems with nothing to attend to.
_SMALLEST_IMAGE = 32
_MOST_WIDTHS = 4
_WAVE_SAMPLES = 4000
_SPECTROGRAM_FRAMES = 128
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
    ("past_values", "future_values"),
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


@dataclass(frozen=True)
class _Config:
    """A config with its nested ones: a field is looked up in all of them, outermost first."""

    configs: tuple[Any, ...]

    @classmethod
    def of(cls, config: Any) -> "_Config":
        found = [config]
        for candidate in found:
            nested = (value for value in vars(candidate).values() if hasattr(value, "model_type"))
            found.extend(value for value in nested if not any(value is other for other in found))
        return cls(tuple(found))

    def find(self, *fields: str) -> Any:
        """Returns the first of these fields that is set, or None."""
        values = (getattr(config, field, None) for config in self.configs for field in fields)
        return next((value for value in values if value is not None), None)

    def number(self, default: int, *fields: str) -> int:
        """Returns the first of these fields if it is a whole number, else `default`."""
        value = self.find(*fields)
        return value if isinstance(value, int) and value > 0 else default


def _of_config(model: nn.Module) -> Iterator[dict[str, Any]]:
    config = _Config.of(model.config)
    arguments = _parameters_of_forward(model)
    generator = torch.Generator().manual_seed(0)
    main = getattr(model, "main_input_name", None)
    required = _required(arguments)
    leading = [name for name in arguments if name == main or name in required]
    first = leading or list(arguments)[:1]
    if getattr(model.config, "is_encoder_decoder", False):
        first.append("decoder_input_ids")
    for names in (first, *((*required, *names) for names in _COMBINATIONS)):
        makers = {name: _MAKERS[name] for name in names if name in arguments and name in _MAKERS}
        chosen = {name: make(config, generator) for name, make in makers.items()}
        yield chosen
        yield from _with_other_axes(chosen, config)


def _with_other_axes(chosen: dict[str, Tensor], config: _Config) -> Iterator[dict[str, Tensor]]:
    """Yields the same inputs with one axis more: videos, sets of images, sound of several channels."""
    images, sound = chosen.get("pixel_values"), chosen.get("input_values")
    if images is not None and images.dim() == 4:
        frames = config.number(1, "num_frames", "frames_per_clip")
        yield {**chosen, "pixel_values": images.unsqueeze(1).repeat(1, frames, 1, 1, 1)}
    if sound is not None and sound.dim() == 2:
        yield {**chosen, "input_values": sound.unsqueeze(1)}


def _tokens(config: _Config, generator: torch.Generator) -> Tensor:
    vocabulary = config.number(100, "vocab_size")
    return torch.randint(min(3, vocabulary - 1), vocabulary, (BATCH, LENGTH), generator=generator)


def _zeros(config: _Config, generator: torch.Generator) -> Tensor:
    return torch.zeros(BATCH, LENGTH, dtype=torch.long)


def _ones(config: _Config, generator: torch.Generator) -> Tensor:
    return torch.ones(BATCH, LENGTH, dtype=torch.long)


def _boxes(config: _Config, generator: torch.Generator) -> Tensor:
    return torch.zeros(BATCH, LENGTH, 4, dtype=torch.long)


def _states(config: _Config, generator: torch.Generator) -> Tensor:
    width = config.number(64, "hidden_size", "d_model", "n_embd", "dim")
    return torch.randn(BATCH, LENGTH, width, generator=generator)


def _images(config: _Config, generator: torch.Generator) -> Tensor:
    channels = config.number(3, "num_channels", "in_channels", "in_chans")
    size = config.find("image_size", "img_size", "input_size")
    if isinstance(size, dict):
        size = (size.get("height", 224), size.get("width", 224))
    if not isinstance(size, (list, tuple)):
        size = (size, size) if isinstance(size, int) else (max(_SMALLEST_IMAGE, 224),) * 2
    return torch.randn(BATCH, channels, size[0], size[-1], generator=generator)


def _videos(config: _Config, generator: torch.Generator) -> Tensor:
    frames = config.number(2, "num_frames", "frames_per_clip")
    return _images(config, generator).unsqueeze(1).repeat(1, frames, 1, 1, 1)


def _spectrogram(config: _Config, generator: torch.Generator) -> Tensor:
    bands = config.number(80, "num_mel_bins", "feature_size", "input_feat_per_channel", "input_dim")
    positions = config.find("max_source_positions")
    if config.find("num_mel_bins") and isinstance(positions, int) and positions <= 3000:
        return torch.randn(BATCH, bands, 2 * positions, generator=generator)
    return torch.randn(BATCH, _SPECTROGRAM_FRAMES, bands, generator=generator)


def _waves(config: _Config, generator: torch.Generator) -> Tensor:
    bands, frames = config.find("num_mel_bins"), config.find("max_length")
    if isinstance(bands, int) and isinstance(frames, int) and config.find("conv_dim") is None:
        return torch.randn(BATCH, frames, bands, generator=generator)
    return torch.randn(BATCH, _WAVE_SAMPLES, generator=generator)


def _series(config: _Config, generator: torch.Generator) -> Tensor:
    lags = config.find("lags_sequence")
    length = config.number(16, "context_length") + (
        max(lags) if isinstance(lags, (list, tuple)) and lags else 0
    )
    channels = config.number(1, "num_input_channels", "input_size")
    shape = (BATCH, length, channels) if channels > 1 or config.find("patch_length") else (BATCH, length)
    return torch.randn(shape, generator=generator)


_MAKERS: dict[str, Callable[[_Config, torch.Generator], Tensor]] = {
    "input_ids": _tokens,
    "decoder_input_ids": _tokens,
    "attention_mask": _ones,
    "decoder_attention_mask": _ones,
    "token_type_ids": _zeros,
    "position_ids": _zeros,
    "bbox": _boxes,
    "inputs_embeds": _states,
    "hidden_states": _states,
    "pixel_values": _images,
    "pixel_values_videos": _videos,
    "input_features": _spectrogram,
    "input_values": _waves,
    "past_values": _series,
    "future_values": _series,
}
"""What each argument of forward takes; an argument not listed here is left at its default."""


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
        shape = (BATCH, matrices[0][1].shape[1], *(_SMALLEST_IMAGE,) * (matrices[0][1].dim() - 2))
        yield 0, lambda: torch.randn(shape, generator=generator)
    for width in _widths(model):
        yield 1, lambda width=width: torch.randn(BATCH, LENGTH, width, generator=generator)


def _widths(model: nn.Module) -> list[int]:
    sizes = (p.shape[-1] for p in model.parameters() if p.dim())
    return list(dict.fromkeys(sizes))[:_MOST_WIDTHS]
