"""Cuts a config to a few layers and keeps every kind of layer, by the names of its fields alone."""

import re
from collections.abc import Iterator
from typing import Any

from peft_compiler.analysis.arguments import Config

DEPTH = 4
_DEEPEST = 6
_MOST_KINDS = 6

_COUNTS = re.compile(r"(^|_)(layers?|depth|blocks|num_hidden_layers|stages_depth|attends_per_block)$")
# These say of which kind the first layers are, or go with a list of another kind of layer.
_NOT_COUNTS = re.compile(
    r"conv|feat_extract|dense|hash|upsampl|downsampl|out_|select|feature_layer|window_layers|shared_layers"
)
_SHARED = re.compile(r"shared_layers$")
_FIRST_DENSE = re.compile(r"first_k|dense_layers|hash_layers")
_PERIODS = re.compile(
    r"(layer|attn|attention|moe|sparse|sliding|expert|cross).*(period|interval|pattern|step|freq)$|every"
)
_OFFSETS = re.compile(r"(layer|attn|expert).*offset$")
_STAGES = re.compile(r"^(depths|num_layers|layers|num_blocks|layer_depths|encoder_depths|stage_depths)$")
_KIND_LISTS = re.compile(r"layer.*type|block.*type|layers_pattern|hybrid.*pattern")
_INDEX_LISTS = re.compile(r"(index|indices|indexes|idx|idxs|ids|layers)$")


def cut(config: Any) -> None:
    """Cuts a config and those within it to `DEPTH` layers, in place."""
    for each in Config.of(config).configs:
        _cut_one(each)


def _cut_one(config: Any) -> None:
    fields = {name: value for name, value in vars(config).items() if not name.startswith("_")}
    counts = {
        name: value
        for name, value in fields.items()
        if _is_count(value) and _COUNTS.search(name) and not _NOT_COUNTS.search(name) and value > DEPTH
    }
    for length in sorted(set(counts.values())) or _lengths_of_kind_lists(fields):
        kept = _kept_layers(fields, length)
        for name, value in counts.items():
            if value == length:
                setattr(config, name, len(kept))
        for name, value in fields.items():
            is_word = isinstance(value, str) and not _KIND_LISTS.search(name)
            if isinstance(value, (list, tuple, str)) and len(value) == length and not is_word:
                shorter = [value[index] for index in kept]
                setattr(config, name, "".join(shorter) if isinstance(value, str) else type(value)(shorter))
            elif _is_index_list(name, value, length):
                setattr(config, name, _indices_within(name, value, len(kept)))
        _cut_stages(config, length, len(kept))
    for name, value in fields.items():
        # Layers that share what an earlier one of their kind computes: too few are left to have both.
        for pattern, most in ((_FIRST_DENSE, 1), (_PERIODS, 2), (_OFFSETS, 1), (_SHARED, 0)):
            if _is_count(value) and pattern.search(name) and value > most:
                setattr(config, name, most)
        if isinstance(value, (list, tuple)) and _STAGES.search(name) and all(map(_is_count, value)):
            left = getattr(config, name)  # which may have fewer stages by now
            setattr(config, name, type(value)(min(count, 2) for count in left))


def _cut_stages(config: Any, length: int, depth: int) -> None:
    """Cuts a backbone's stages, one a layer behind the stem, and gives out as many of the last as before."""
    stages = vars(config).get("stage_names")
    if not isinstance(stages, list) or len(stages) != length + 1:
        return
    given = len(config.out_indices)
    config.stage_names = stages[: depth + 1]
    config.out_indices = list(range(max(1, depth + 1 - given), depth + 1))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _lengths_of_kind_lists(fields: dict[str, Any]) -> list[int]:
    """Returns the length of a list that says the kind of each layer, where nothing else counts them."""
    return [
        len(value)
        for name, value in fields.items()
        if isinstance(value, (list, tuple, str)) and _KIND_LISTS.search(name) and len(value) > DEPTH
    ][:1]


def _kept_layers(fields: dict[str, Any], length: int) -> list[int]:
    """Returns the layers to keep: the first of each kind, then the first ones, in order."""
    lists = [value for name, value in fields.items() if _says_kinds(name, value, length)]
    kinds = [str([each[index] for each in lists]) for index in range(length)]
    firsts = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    if len(firsts) > DEPTH:
        firsts = list(dict.fromkeys(index for each in lists for index in _firsts(each)))[:_DEEPEST]
    others = (index for index in range(length) if index not in firsts)
    return sorted([*firsts, *others][: max(DEPTH, len(firsts))])


def _firsts(values: Any) -> Iterator[int]:
    told = [str(value) for value in values]
    yield from (told.index(value) for value in dict.fromkeys(told))


def _says_kinds(name: str, value: Any, length: int) -> bool:
    if isinstance(value, str) and not _KIND_LISTS.search(name):
        return False
    if not isinstance(value, (list, tuple, str)) or len(value) != length:
        return False
    return len({str(each) for each in value}) <= _MOST_KINDS


def _is_index_list(name: str, value: Any, length: int) -> bool:
    is_list = isinstance(value, (list, tuple)) and len(value) > 0 and all(map(_is_count, value))
    return is_list and bool(_INDEX_LISTS.search(name)) and max(value) <= length and "token" not in name


def _indices_within(name: str, value: Any, depth: int) -> Any:
    """Returns indices of layers that are left: as many as there were for outputs, else the first."""
    if "out" in name and len(value) <= depth:
        return type(value)(range(depth - len(value), depth))
    return type(value)([min(value[0], depth - 1)])
