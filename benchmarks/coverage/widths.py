"""Shrinks the widths of a config, all by one factor, so that what fitted together still does."""

import math
import re
from collections.abc import Iterator
from typing import Any

from peft_compiler.analysis.arguments import Config

VOCABULARY = 512
_WIDE, _WITHOUT_HEADS = 2048, 512
_EXPERTS, _PATCHES, _FRAMES = 8, 4, 8
_LARGE, _LARGE_PATCH = 256, 16

_HEADS = re.compile(r"(^|_)(heads|n_head|nhead)$")
# Few heads of another kind, which would keep all others from getting fewer: keys, and those of an index.
_KEY_HEADS = re.compile(r"(kv|key_value|index).*heads?$|heads?_kv$|n_head_kv")
_WIDTHS = re.compile(
    r"(size|dim|width|channels|embd|model|inner|ff|filters|units|features|d_inner|latents|d_ssm)$"
)
_COUNTED_WIDTHS = re.compile(r"^(num_pos_feats|num_filters|n_filters|upsample_groups)$")
_INNER = re.compile(r"intermediate|ffn|d_ff|n_inner")
_NOT_WIDTHS = re.compile(
    r"head|vocab|patch|image|img|kernel|window|chunk|batch|block|tile|crop|grid|num_|max_|context|sampl|state"
    r"|rotary|rope|rank|cache|pool|stride|in_chan|mel|codebook|time|input_size|lag|predict|group|kv|memory"
    r"|spatial|temporal|merge|position|bucket|vision_feature|out_features|conv|audio_|ngram|input_feat|span"
)
_EXPERT_COUNTS = re.compile(r"(num|n)_(routed_|local_|sparse_)?experts$|moe_num_experts$")
_CHOSEN = re.compile(
    r"experts_per_tok|moe_top_?k$|num_experts_per_token$|top_k_experts$|num_selected_experts$"
)
_GROUPS = re.compile(r"^(n_group|topk_group|moe_n_group|(n|num)_expert_group)$")
_NORMALISED = re.compile(r"^base_channels$")  # of blocks that normalise them in 32 groups
_STATE_GROUPS = re.compile(r"(^|_)n_?groups$|num_groups$")
_TOKENS = re.compile(r"token(_id|_ids|_index|_idx)?$|_token_id_?\w*$|^(bos|eos|pad|sep|mask)\w*_id$")


def shrink(config: Any, images: bool, heads: int = 2) -> None:
    """Shrinks a config and those within it in place to no fewer `heads`, images only if wanted."""
    configs = Config.of(config).configs
    factor = _factor(configs, heads)
    for each in configs:
        for name, value in list(vars(each).items()):
            if isinstance(value, int) and not isinstance(value, bool) and not name.startswith("_"):
                setattr(each, name, _shrunk(name, value, factor))
        if images:
            _shrink_images(each)
    shrink_vocabulary(config)


def _factor(configs: tuple[Any, ...], fewest: int) -> int:
    """Returns the largest number that divides all heads and leaves at least the fewest of them."""
    heads = [
        value
        for config in configs
        for name, value in vars(config).items()
        if _is_heads(name) and isinstance(value, int) and not isinstance(value, bool) and value > 1
    ]
    if not heads:
        width = Config.of(configs[0]).number(1, "hidden_size")
        return width // _WITHOUT_HEADS if width >= _WIDE else 1
    common = math.gcd(*heads)
    fitting = (each for each in range(1, common + 1) if common % each == 0 and min(heads) // each >= fewest)
    return max(fitting, default=1)


def _is_heads(name: str) -> bool:
    return bool(_HEADS.search(name)) and not _KEY_HEADS.search(name)


def _shrunk(name: str, value: int, factor: int) -> int:
    if _KEY_HEADS.search(name):
        return max(1, value // factor)
    if _is_heads(name) and value > 1:
        return value // factor
    if _INNER.search(name) and value > 16:
        return max(16, value // factor // 8 * 8)  # grouped products want rows of whole vectors
    if _is_width(name) and value % factor == 0 and value // factor >= 4:
        return max(value // factor, min(value, 32)) if _NORMALISED.search(name) else value // factor
    for pattern, most in ((_EXPERT_COUNTS, _EXPERTS), (_CHOSEN, 2), (_GROUPS, 1), (_STATE_GROUPS, 1)):
        if pattern.search(name) and value > most:
            return most
    return value


def _is_width(name: str) -> bool:
    by_name = _WIDTHS.search(name) and not _NOT_WIDTHS.search(name)
    return bool(by_name or _COUNTED_WIDTHS.search(name))


def _shrink_images(config: Any) -> None:
    patch = getattr(config, "patch_size", None)
    depths = getattr(config, "depths", None)
    # Each stage but the first halves the image: with one key left, a query makes no difference.
    patches = max(_PATCHES, 2 ** len(depths)) if isinstance(depths, (list, tuple)) else _PATCHES
    for name in ("image_size", "crop_size"):
        image = getattr(config, name, None)
        if isinstance(image, int) and isinstance(patch, int) and image > patches * patch:
            setattr(config, name, patches * patch)
            if getattr(config, "image_embedding_size", None) == image // patch:
                config.image_embedding_size = patches
    for name in ("image_size", "backbone_feature_sizes"):
        sizes = vars(config).get(name)
        if isinstance(sizes, list) and _largest(sizes) >= _LARGE:
            setattr(config, name, _divided(sizes))
    for name in ("frames_per_clip", "num_frames"):
        if getattr(config, name, 0) > _FRAMES:
            setattr(config, name, _FRAMES)


def _largest(sizes: Any) -> int:
    return max(map(_largest, sizes)) if isinstance(sizes, list) else sizes


def _divided(sizes: Any) -> Any:
    return [*map(_divided, sizes)] if isinstance(sizes, list) else max(1, sizes // _LARGE_PATCH)


def shrink_vocabulary(config: Any) -> None:
    """Leaves few entries, with every special token at an entry of its own."""
    for each in Config.of(config).configs:
        for name, size in list(vars(each).items()):
            if name.startswith("vocab_size") and isinstance(size, int) and size > VOCABULARY:
                setattr(each, name, VOCABULARY)
    renumber_tokens(config)


def renumber_tokens(config: Any) -> None:
    """Gives every special token outside the vocabulary an entry within it, the same one everywhere."""
    configs = Config.of(config).configs
    sizes = [size for each in configs if isinstance(size := getattr(each, "vocab_size", None), int)]
    smallest = min(sizes, default=0)
    if not smallest:
        return
    outside = {
        token
        for each in configs
        for name, value in vars(each).items()
        if _TOKENS.search(name)
        for token in _numbers(value)
        if not -1 <= token < smallest
    }
    entries = {token: smallest - 1 - place for place, token in enumerate(sorted(outside)) if place < smallest}
    for each in configs:
        for name, value in list(vars(each).items()):
            if _TOKENS.search(name) and any(token in entries for token in _numbers(value)):
                new = [entries.get(token, token) for token in _numbers(value)]
                setattr(each, name, new[0] if isinstance(value, int) else type(value)(new))


def _numbers(value: Any) -> Iterator[int]:
    values = value if isinstance(value, (list, tuple)) else [value]
    yield from (each for each in values if isinstance(each, int) and not isinstance(each, bool))
