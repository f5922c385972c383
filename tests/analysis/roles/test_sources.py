"""The stream that a sub-layer leaves, and the norm behind it, as the module that adds sees them."""

import pytest

import peft_compiler as pc
from peft_compiler.site import Edge
from tests import zoo

# A norm of the sub-layer's own is what takes the stream.
PRE_NORM = {"attention": ("input_layernorm", None), "feed_forward": ("post_attention_layernorm", None)}
SOURCES: dict[str, dict[str, tuple[str | int, str | None]]] = {
    "llama": PRE_NORM,
    "mixtral": PRE_NORM,
    "gpt2": {"attention": ("ln_1", None), "feed_forward": ("ln_2", None)},
    # Attention and feed-forward in parallel: each is summed first.
    "falcon_new": {"attention": ("ln_attn", None), "feed_forward": ("ln_attn", None)},
    # The module that adds is given the stream.
    "bloom": {"attention": (0, None), "feed_forward": (0, None)},
    "bert": {"attention": (1, "LayerNorm"), "feed_forward": (1, "LayerNorm")},
    "bart": {
        "attention": ("self_attn", "self_attn_layer_norm"),
        "attention.cross": ("encoder_attn", "encoder_attn_layer_norm"),
        "feed_forward": ("fc1", "final_layer_norm"),
    },
    "whisper": {
        "attention": ("self_attn_layer_norm", None),
        "attention.cross": ("encoder_attn_layer_norm", None),
        "feed_forward": ("final_layer_norm", None),
    },
    "mamba": {"mixer": ("norm", None)},
    "torch_encoder": {"attention": ("self_attn", "norm1"), "feed_forward": ("linear1", "norm2")},
    "handmade": {"attention": ("norm", None), "feed_forward": ("inner", None)},
}


@pytest.mark.parametrize("name", SOURCES)
def test_where_the_stream_is_had(name: str) -> None:
    found: dict[str, set[tuple[str | int, str | None]]] = {}
    for site in pc.find_sites(zoo.build(name), zoo.inputs(name)):
        if isinstance(site.place, Edge):
            source = site.place.source
            assert source is not None
            taker = source.taker if isinstance(source.taker, str) else source.operand
            if isinstance(source.taker, str):
                assert source.operand == 0
            else:
                assert source.taker == site.place.anchor
            found.setdefault(site.name.rpartition(":")[2], set()).add((taker, site.place.norm))
    assert found == {role: {expected} for role, expected in SOURCES[name].items()}
