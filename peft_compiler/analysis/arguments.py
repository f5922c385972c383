"""What each argument of a forward takes: an example by its name, its config, and what it comes with."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BATCH, LENGTH = 2, 7
# Smaller images than this leave some convolutional stems with nothing to attend to.
SMALLEST_IMAGE = 32
# A common multiple of the steps of most encoders of sound, and long enough for all of them.
_WAVE_SAMPLES = 3840
_SPECTROGRAM_FRAMES = 128
# Patches of an image along each side: enough to be merged four by four.
GRID = 8


@dataclass(frozen=True)
class Config:
    """A config with its nested ones: a field is looked up in all of them, outermost first."""

    configs: tuple[Any, ...]

    @classmethod
    def of(cls, config: Any) -> "Config":
        """Returns a config with all that are nested in it."""
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


def example(name: str, config: Config, generator: torch.Generator) -> Tensor | None:
    """Returns what the argument `name` may be given; None where its name says nothing."""
    make = _MAKERS.get(name)
    return None if make is None else make(config, generator)


def required_example(
    name: str, config: Config, generator: torch.Generator, others: Mapping[str, Tensor]
) -> Tensor | None:
    """Returns the same for an argument that must be given: the end of its name has to do."""
    found = example(name, config, generator)
    if found is not None:
        return found
    if name.endswith("mask"):
        return mask_for(name, others)
    return next((make(config, generator) for end, make in _BY_END.items() if re.search(end, name)), None)


def mask_for(name: str, others: Mapping[str, Tensor]) -> Tensor | None:
    """Returns a mask that hides nothing of the argument that its name is about, None where there is none."""
    stem = re.sub(r"_?(attention|observed|padding)?_?mask$", "", name)
    about = next((value for other, value in others.items() if stem and other.startswith(stem)), None)
    if about is None:
        return None
    if about.dim() == 4:  # images: a value for each pixel
        return torch.ones(about.shape[0], *about.shape[-2:], dtype=torch.long)
    if about.dim() == 3 and about.is_floating_point():  # spectrograms: frames are the longer axis
        return torch.ones(about.shape[0], max(about.shape[1:]), dtype=torch.long)
    return torch.ones(about.shape[:2], dtype=torch.long)


def packed_patches(config: Config, generator: torch.Generator) -> list[Tensor]:
    """Returns the patches of one image in a row, in each form that encoders of packed images take them.

    Those are flat, flat over several frames, and as small images.
    """
    channels = config.number(3, "num_channels", "in_channels", "in_chans")
    side, frames = config.number(14, "patch_size"), config.number(1, "temporal_patch_size")
    shapes = [(channels * frames * side * side,), (channels * side * side,), (channels, side, side)]
    return [torch.randn(GRID * GRID, *shape, generator=generator) for shape in dict.fromkeys(shapes)]


def patch_grid() -> Tensor:
    """Returns the frames, rows and columns of the patches that `packed_patches` gives."""
    return torch.tensor([[1, GRID, GRID]])


def _tokens(config: Config, generator: torch.Generator) -> Tensor:
    vocabulary = config.number(100, "vocab_size")
    return torch.randint(min(3, vocabulary - 1), vocabulary, (BATCH, LENGTH), generator=generator)


def _zeros(config: Config, generator: torch.Generator) -> Tensor:
    return torch.zeros(BATCH, LENGTH, dtype=torch.long)


def _ones(config: Config, generator: torch.Generator) -> Tensor:
    return torch.ones(BATCH, LENGTH, dtype=torch.long)


def _boxes(config: Config, generator: torch.Generator) -> Tensor:
    return torch.zeros(BATCH, LENGTH, 4, dtype=torch.long)


def _states(config: Config, generator: torch.Generator) -> Tensor:
    width = config.number(64, "hidden_size", "d_model", "n_embd", "dim")
    return torch.randn(BATCH, LENGTH, width, generator=generator)


def _encoded(config: Config, generator: torch.Generator) -> Tensor:
    own = config.number(64, "hidden_size", "d_model")
    width = config.number(own, "encoder_hidden_size", "cross_attention_hidden_size")
    return torch.randn(BATCH, LENGTH, width, generator=generator)


def _codes(config: Config, generator: torch.Generator) -> Tensor:
    books = config.number(1, "num_quantizers", "num_codebooks", "n_codebooks")
    entries = config.number(16, "codebook_size")
    return torch.randint(0, entries, (BATCH, books, LENGTH), generator=generator)


def _images(config: Config, generator: torch.Generator) -> Tensor:
    channels = config.number(3, "num_channels", "in_channels", "in_chans")
    size = config.find("image_size", "img_size", "input_size", "crop_size")
    if isinstance(size, dict):
        size = (size.get("height", 224), size.get("width", 224))
    if not isinstance(size, (list, tuple)):
        size = (size, size) if isinstance(size, int) else (max(SMALLEST_IMAGE, 224),) * 2
    return torch.randn(BATCH, channels, size[0], size[-1], generator=generator)


def _videos(config: Config, generator: torch.Generator) -> Tensor:
    frames = config.number(2, "num_frames", "frames_per_clip")
    return _images(config, generator).unsqueeze(1).repeat(1, frames, 1, 1, 1)


def _spectrogram(config: Config, generator: torch.Generator) -> Tensor:
    bands = config.number(
        80, "num_mel_bins", "feature_size", "input_feat_per_channel", "input_feat_size", "input_dim"
    )
    positions = config.find("max_source_positions")
    if config.find("num_mel_bins") and isinstance(positions, int) and positions <= 3000:
        return torch.randn(BATCH, bands, 2 * positions, generator=generator)
    return torch.randn(BATCH, _SPECTROGRAM_FRAMES, bands, generator=generator)


def _waves(config: Config, generator: torch.Generator) -> Tensor:
    bands, frames = config.find("num_mel_bins"), config.find("max_length")
    if isinstance(bands, int) and isinstance(frames, int) and config.find("conv_dim") is None:
        return torch.randn(BATCH, frames, bands, generator=generator)
    return torch.randn(BATCH, _WAVE_SAMPLES, generator=generator)


def _lags(config: Config) -> int:
    lags = config.find("lags_sequence")
    return max(lags) if isinstance(lags, (list, tuple)) and lags else 0


def _series(config: Config, generator: torch.Generator) -> Tensor:
    length = config.number(16, "context_length") + _lags(config)
    channels = config.number(1, "num_input_channels", "input_size")
    shape = (BATCH, length, channels) if channels > 1 or config.find("patch_length") else (BATCH, length)
    return torch.randn(shape, generator=generator)


def _future(config: Config, generator: torch.Generator) -> Tensor:
    past = _series(config, generator)
    return past[:, : config.number(past.shape[1], "prediction_length")]


def _time_features(config: Config, generator: torch.Generator) -> Tensor:
    length, features = _series(config, generator).shape[1], config.find("num_time_features")
    # A model of none takes an empty one.
    width = features if isinstance(features, int) else 1
    return torch.randn(BATCH, length, width, generator=generator)


def _future_features(config: Config, generator: torch.Generator) -> Tensor:
    past = _time_features(config, generator)
    return past[:, : config.number(past.shape[1], "prediction_length")]


_MAKERS: dict[str, Callable[[Config, torch.Generator], Tensor]] = {
    "input_ids": _tokens,
    "decoder_input_ids": _tokens,
    "attention_mask": _ones,
    "decoder_attention_mask": _ones,
    "token_type_ids": _zeros,
    "position_ids": _zeros,
    "bbox": _boxes,
    "inputs_embeds": _states,
    "hidden_states": _states,
    "encoder_hidden_states": _encoded,
    "pixel_values": _images,
    "pixel_values_videos": _videos,
    "input_features": _spectrogram,
    "input_values": _waves,
    "past_values": _series,
    "future_values": _future,
    "past_time_features": _time_features,
    "future_time_features": _future_features,
    "audio_codes": _codes,
}
"""What each argument takes whose name is all over the library; any other is left at its default."""

_BY_END: dict[str, Callable[[Config, torch.Generator], Tensor]] = {
    r"(embeds|embeddings|states)$": _states,
    r"(ids|tokens)$": _zeros,
    r"codes$": _codes,
    r"pixel_values$": _images,
}
"""What an argument takes that must be given, by the end of its name."""
