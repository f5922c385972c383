"""Example inputs for the few types whose users would have to give their own: nothing says what they take."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_SIDE, _LENGTH = 8, 7
_PATCHES = _SIDE * _SIDE


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _words(batch: int = 2, length: int = _LENGTH) -> Tensor:
    return torch.arange(5, 5 + batch * length).reshape(batch, length)


def _image_of(config: Any) -> Tensor:
    size = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
    return _random(2, getattr(config, "num_channels", 3), size, size)


def _patches_with_shapes(model: nn.Module) -> dict[str, Any]:
    config = getattr(model.config, "vision_config", model.config)
    width = config.num_channels * config.patch_size**2
    words = {"input_ids": _words()} if hasattr(model.config, "text_config") else {}
    return words | {
        "pixel_values": _random(2, _PATCHES, width),
        "pixel_attention_mask": torch.ones(2, _PATCHES, dtype=torch.long),
        "spatial_shapes": torch.tensor([[_SIDE, _SIDE]] * 2),
    }


def _one_row_of_patches(model: nn.Module) -> dict[str, Any]:
    side = model.config.patch_size
    return {
        "pixel_values": _random(1, 3, side, side * _PATCHES),
        "target_sizes": torch.tensor([[_SIDE, _SIDE]]),
    }


def _patches_with_positions(model: nn.Module) -> dict[str, Any]:
    places = torch.arange(_PATCHES)
    positions = torch.stack((places % _SIDE, places // _SIDE), -1).expand(2, -1, -1)
    width = 3 * model.config.patch_size**2
    return {"pixel_values": _random(2, _PATCHES, width), "pixel_position_ids": positions}


def _patches_with_merges(model: nn.Module) -> dict[str, Any]:
    width = model.config.num_channels * model.config.patch_size**2
    return {
        "pixel_values": _random(_PATCHES, width),
        "grid_thw": torch.tensor([[1, _SIDE, _SIDE]]),
        "merge_sizes": torch.tensor([2]),
    }


def _trajectories(model: nn.Module) -> dict[str, Any]:
    config = model.config
    return {
        "states": _random(2, _LENGTH, config.state_dim),
        "actions": _random(2, _LENGTH, config.act_dim),
        "rewards": _random(2, _LENGTH, 1),
        "returns_to_go": _random(2, _LENGTH, 1),
        "timesteps": torch.arange(_LENGTH).expand(2, -1),
        "attention_mask": torch.ones(2, _LENGTH, dtype=torch.long),
    }


def _objects_in_an_image(model: nn.Module) -> dict[str, Any]:
    return {
        "input_ids": _words(),
        "visual_feats": _random(2, 5, model.config.visual_feat_dim),
        "visual_pos": _random(2, 5, model.config.visual_pos_dim),
    }


def _flattened_patches(model: nn.Module) -> dict[str, Any]:
    config = model.config.vision_config
    places = torch.cartesian_prod(torch.arange(1.0, _SIDE + 1), torch.arange(1.0, _SIDE + 1)).expand(
        2, -1, -1
    )
    return {
        "flattened_patches": torch.cat((places, _random(2, _PATCHES, config.patch_embed_hidden_size)), -1),
        "decoder_input_ids": _words(),
    }


def _image_among_words(model: nn.Module) -> dict[str, Any]:
    queries = model.config.latent_query_num
    mask = torch.zeros(2, queries + _LENGTH, dtype=torch.long)
    mask[:, 1 : queries + 1] = 1
    return {
        "pixel_values": _image_of(model.config.vision_config),
        "input_ids": torch.full((2, queries + _LENGTH), 5),
        "image_embeds_position_mask": mask,
    }


def _attended_images(model: nn.Module) -> dict[str, Any]:
    images = _image_of(model.config.vision_config)
    return {
        "input_ids": _words(),
        "attention_mask": torch.ones(2, _LENGTH, dtype=torch.long),
        "pixel_values": images.unsqueeze(1),
        "image_attention_mask": torch.ones(2, _LENGTH, 1, dtype=torch.long),
    }


def _asked_image(frames: int) -> Callable[[nn.Module], dict[str, Any]]:
    def make(model: nn.Module) -> dict[str, Any]:
        image = _image_of(model.config.vision_config)
        if frames:
            image = image.unsqueeze(1).repeat(1, frames, 1, 1, 1)
        return {
            "pixel_values": image,
            "qformer_input_ids": _words(),
            "input_ids": _words(),
            "attention_mask": torch.ones(2, _LENGTH, dtype=torch.long),
        }

    return make


def _sound_and_words(model: nn.Module) -> dict[str, Any]:
    config = model.config.audio_config
    frames = config.spec_size * (config.spec_size // config.num_mel_bins)
    return {"input_ids": _words(), "input_features": _random(2, 1, frames, config.num_mel_bins)}


def _speech_and_words(model: nn.Module) -> dict[str, Any]:
    bands = model.config.decoder_config.feature_size
    return {"input_ids": _words(), "input_features": _random(2, bands, 64)}


def _large_image(size: int) -> Callable[[nn.Module], dict[str, Any]]:
    return lambda model: {"pixel_values": _random(1, 3, size, size)}


def _task(model: nn.Module) -> dict[str, Any]:
    return {
        "pixel_values": _random(1, 3, 224, 224),
        "task_inputs": torch.zeros(1, model.config.task_seq_len, dtype=torch.long),
    }


def _prompted_image(model: nn.Module) -> dict[str, Any]:
    height, width = model.config.image_size
    images = _random(2, 3, height // 2, width)
    return {"pixel_values": images, "prompt_pixel_values": images, "prompt_masks": images}


def _series_of_a_frequency(model: nn.Module) -> dict[str, Any]:
    length = model.config.context_length
    return {
        "past_values": _random(2, length),
        "past_values_padding": torch.zeros(2, length),
        "freq": torch.zeros(2, 1, dtype=torch.long),
    }


def _words_of_a_language(model: nn.Module) -> dict[str, Any]:
    return {"input_ids": _words(), "lang_ids": torch.zeros(2, dtype=torch.long)}


def _windows_of_sound(model: nn.Module) -> dict[str, Any]:
    frames = 2 * model.config.n_window
    return {
        "input_features": _random(1, model.config.num_mel_bins, frames),
        "input_features_mask": torch.ones(1, frames, dtype=torch.long),
    }


SPECIAL: dict[str, Callable[[nn.Module], dict[str, Any]]] = {
    "clap": _sound_and_words,
    "clvp": _speech_and_words,
    "decision_transformer": _trajectories,
    "depth_pro": _large_image(1536),
    "gemma4_vision": _patches_with_positions,
    "idefics": _attended_images,
    "instructblip": _asked_image(0),
    "instructblipvideo": _asked_image(4),
    "kosmos-2": _image_among_words,
    "lxmert": _objects_in_an_image,
    "minicpm_ocr_vision": _one_row_of_patches,
    "minicpmv4_7_vision": _one_row_of_patches,
    "oneformer": _task,
    "pix2struct": _flattened_patches,
    "qwen3_asr_encoder": _windows_of_sound,
    "rf_detr": _large_image(560),
    "seggpt": _prompted_image,
    "siglip2": _patches_with_shapes,
    "siglip2_vision_model": _patches_with_shapes,
    "timesfm": _series_of_a_frequency,
    "video_llama_3_vision": _patches_with_merges,
    "xmod": _words_of_a_language,
}
"""By model type; each takes the model."""


def special_inputs(model_type: str, model: nn.Module) -> dict[str, Any] | None:
    """Returns the example inputs of a type in the table, else None: they are derived."""
    make = SPECIAL.get(model_type)
    return None if make is None else make(model)
