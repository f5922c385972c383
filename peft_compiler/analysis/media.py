"""Example inputs that reach more of a model than its tokens do: images or sound, and tokens in their place.

A model that reads images among words takes them as an argument of their own, and gives each of
their features the place of one token with a certain id. The id is a field of the config, and how
many features an example has, the model says itself: `get_image_features` and `get_audio_features`
are part of the interface that models of transformers share, as the names of arguments are.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from peft_compiler.analysis.arguments import LENGTH, Config, mask_for
from peft_compiler.analysis.inputs import inputs_with

_MEDIA = {
    "pixel_values": (("image_token_id", "image_token_index", "im_token_id"), "get_image_features"),
    "input_features": (("audio_token_id", "audio_token_index", "speech_token_id"), "get_audio_features"),
    "input_values": (("audio_token_id", "audio_token_index", "speech_token_id"), "get_audio_features"),
}
"""Arguments that hold images or sound: the fields with the id of the token, and what gives the features."""
_KINDS_OF_TOKENS = ("mm_token_type_ids", "token_type_ids")


def inputs_with_media(twin: nn.Module) -> Iterator[dict[str, Any]]:
    """Yields keyword arguments for the forward of a model without weights, with images or sound among words.

    Nothing is yielded for a model that takes no tokens or no such argument.
    """
    arguments = inspect.signature(twin.forward).parameters
    if "input_ids" not in arguments or not hasattr(twin, "config"):
        return
    config = Config.of(twin.config)
    for name, (fields, getter) in _MEDIA.items():
        if name not in arguments:
            continue
        token, features_of = config.find(*fields), _method(twin, getter)
        for media in inputs_with(twin, name):
            if isinstance(token, int) and features_of is not None:
                for whole in (media, _with_sizes(media, name, arguments)):
                    yield from _among_words(whole, name, token, features_of, arguments)
            else:
                yield from inputs_with(twin, "input_ids", name)
                break


def _method(twin: nn.Module, name: str) -> Callable[..., Any] | None:
    return next((getattr(module, name) for module in twin.modules() if hasattr(module, name)), None)


def _with_sizes(media: Mapping[str, Tensor], name: str, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """Adds how large each image is, and which of its pixels or frames are there, where that can be said."""
    whole, values = dict(media), media[name]
    if "image_sizes" in arguments and values.dim() >= 4:
        whole["image_sizes"] = torch.tensor([values.shape[-2:]] * len(values))
    if "pixel_attention_mask" in arguments and values.dim() >= 4:
        whole["pixel_attention_mask"] = torch.ones(*values.shape[:-3], *values.shape[-2:], dtype=torch.long)
    frames = mask_for(f"{name}_mask", media) if f"{name}_mask" in arguments else None
    return whole if frames is None else {**whole, f"{name}_mask": frames}


def _among_words(
    media: dict[str, Tensor],
    name: str,
    token: int,
    features_of: Callable[..., Any],
    arguments: Mapping[str, Any],
) -> Iterator[dict[str, Tensor]]:
    """Yields the media with as many tokens in their place as the model makes features of them."""
    count = _count(features_of, media)
    examples = len(media[name]) if media[name].dim() > 2 else 1
    if not count or count % examples:
        return
    tokens = torch.arange(3, LENGTH + 3).repeat(examples, 1)
    tokens = tokens.where(tokens != token, 1)
    places = torch.full((examples, count // examples), token)
    whole = {"input_ids": torch.cat([tokens[:, :2], places, tokens[:, 2:]], 1), **media}
    kinds = {kind: (whole["input_ids"] == token).long() for kind in _KINDS_OF_TOKENS if kind in arguments}
    yield whole | kinds


def _count(features_of: Callable[..., Any], media: Mapping[str, Tensor]) -> int:
    """Returns how many features the model makes of an example; 0 if it cannot."""
    taken = inspect.signature(features_of).parameters
    values = {name: _bare(value) for name, value in media.items() if name in taken}
    try:
        with torch.no_grad():
            found = features_of(**values)
    except Exception:
        return 0  # this form of the example is not the model's
    features = getattr(found, "pooler_output", None)
    leaves = tree_leaves(found if features is None else features)
    return sum(leaf.shape[:-1].numel() for leaf in leaves if isinstance(leaf, Tensor))


def _bare(value: Tensor) -> Tensor:
    return value.to("meta") if value.is_floating_point() else value
