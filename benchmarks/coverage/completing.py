"""Fills in what a default config leaves open and its model cannot do without, by names of fields alone."""

from collections.abc import Callable
from typing import Any

from transformers import ResNetConfig

from peft_compiler.analysis.arguments import Config

_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads", "attention_heads")
_HIDDEN = ("hidden_size", "d_model", "n_embd", "dim")


def _first(config: Any, names: tuple[str, ...], default: int) -> int:
    # Not getattr: a field that differs from layer to layer has no value of its own.
    values = (vars(config).get(name) for name in names)
    return next((value for value in values if isinstance(value, int) and value > 0), default)


def _head_width(config: Any) -> int:
    own = vars(config).get("head_dim")
    return own if isinstance(own, int) else _first(config, _HIDDEN, 64) // _first(config, _HEADS, 4)


def _kinds_of_layers(config: Any) -> list[str]:
    return ["dense", *["sparse"] * (_first(config, ("num_hidden_layers",), 1) - 1)]


def _kinds_of_attention(config: Any) -> list[str]:
    return ["full_attention"] * _first(config, ("num_hidden_layers",), 1)


_IMAGE_WORDS = {"<image>": 4, "<|extra_200|>": 5, "<|visual token 000000|>": 6, "IMGIMGAZ": 7}
"""A vocabulary with entries of its own for images, in the spellings of models that generate them."""

_VALUES: dict[str, Callable[[Any], Any]] = {
    "vocab_size": lambda _: 1000,
    "pad_token_id": lambda _: 0,
    "mask_token_id": lambda _: 3,
    "image_token_id": lambda _: 4,
    "image_token_index": lambda _: 4,
    "prediction_length": lambda _: 8,
    "context_length": lambda _: 16,
    "head_dim": _head_width,
    "num_key_value_heads": lambda config: _first(config, _HEADS, 4),
    "intermediate_size": lambda config: 2 * _first(config, _HIDDEN, 64),
    "moe_intermediate_size": lambda config: _first(config, _HIDDEN, 64) // 2,
    "n_routed_experts": lambda _: 8,
    "num_local_experts": lambda _: 8,
    "num_experts": lambda _: 8,
    "n_shared_experts": lambda _: 1,
    "num_experts_per_tok": lambda _: 2,
    "top_k_experts": lambda _: 2,
    "moe_topk": lambda _: 2,
    "n_group": lambda _: 1,
    "topk_group": lambda _: 1,
    "mlp_layer_types": _kinds_of_layers,
    "layer_types": _kinds_of_attention,
    "indexer_n_heads": lambda _: 4,
    "indexer_kv_heads": lambda _: 1,
    "indexer_head_dim": _head_width,
    "indexer_budget": lambda _: 16,
    "indexer_compress_ratio": lambda _: 4,
    "vocabulary_map": lambda _: dict(_IMAGE_WORDS),
    "deepstack_layer_map": lambda _: [[-1, 0]],
    "downsample_rate": lambda _: "1/2",
    "dropout_rate": lambda _: 0.0,
    "clip_qkv": lambda _: 8.0,
}
"""What a field that is None may be, from its config."""


def complete(config: Any) -> None:
    """Completes a config and those within it, in place."""
    for each in Config.of(config).configs:
        for name, value in _VALUES.items():
            if vars(each).get(name, 0) is None:
                setattr(each, name, value(each))
        for name, value in list(vars(each).items()):
            if isinstance(value, tuple):  # which some classes join with a list
                setattr(each, name, list(value))
        _divide_evenly(each)
        _rotate_evenly(each)


def _divide_evenly(config: Any) -> None:
    """Takes fewer heads where they do not divide the width, unless the width of a head is given."""
    name = next((name for name in _HEADS if isinstance(vars(config).get(name), int)), None)
    hidden = _first(config, _HIDDEN, 0)
    if name is None or not hidden or isinstance(vars(config).get("head_dim"), int):
        return
    heads = getattr(config, name)
    while heads > 1 and hidden % heads:
        heads -= 1
    setattr(config, name, heads)


def _rotate_evenly(config: Any) -> None:
    """Gives rotary positions of several axes as many channels as a head has, and every kind of layer."""
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict):
        return
    kinds = set(getattr(config, "layer_types", None) or ())
    nested = [value for value in rope.values() if isinstance(value, dict)]
    if not rope:
        nested = [{"rope_type": "default", "rope_theta": 10000.0}]
    if nested:
        for kind in kinds.difference(rope):
            rope[kind] = dict(nested[0])
    channels = int(_head_width(config) * (rope.get("partial_rotary_factor") or 1.0)) // 2
    rope.setdefault("mrope_section", [channels - 2 * (channels // 3), channels // 3, channels // 3])


def without_timm(config: Any) -> None:
    """Replaces backbones of the timm library, in place, by one that transformers has itself."""
    for each in Config.of(config).configs:
        for name, value in list(vars(each).items()):
            if getattr(value, "model_type", None) == "timm_backbone":
                stages = [f"stage{number}" for number in getattr(value, "out_indices", None) or (1, 2, 3, 4)]
                setattr(
                    each, name, ResNetConfig(out_features=stages, depths=[1, 1, 1, 1], layer_type="basic")
                )
