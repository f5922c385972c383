"""What a sub-layer is computed from, and the norm behind it, as the module that adds its output sees them."""

import pytest

import peft_compiler as pc
from peft_compiler.site import Edge
from tests import zoo

PRE_NORM = {"attention": ("self_attn", None), "feed_forward": ("mlp", None)}
SOURCES: dict[str, dict[str, tuple[str | int, str | None]]] = {
    "llama": PRE_NORM,
    "mixtral": PRE_NORM,
    "gpt2": {"attention": ("attn", None), "feed_forward": ("mlp", None)},
    # Attention and feed-forward in parallel: each is summed first.
    "falcon_new": {"attention": ("self_attention", None), "feed_forward": ("mlp", None)},
    # The module that adds is the sub-layer itself.
    "bloom": {"attention": ("query_key_value", None), "feed_forward": ("dense_h_to_4h", None)},
    # The module that adds is given the stream, which is what the sub-layer was computed from.
    "bert": {"attention": (1, "LayerNorm"), "feed_forward": (1, "LayerNorm")},
    "bart": {
        "attention": ("self_attn", "self_attn_layer_norm"),
        "attention.cross": ("encoder_attn", "encoder_attn_layer_norm"),
        "feed_forward": ("fc1", "final_layer_norm"),
    },
    "whisper": {
        "attention": ("self_attn", None),
        "attention.cross": ("encoder_attn", None),
        "feed_forward": ("fc1", None),
    },
    "mamba": {"mixer": ("mixer", None)},
    "torch_encoder": {"attention": ("self_attn", "norm1"), "feed_forward": ("linear1", "norm2")},
    "handmade": {"attention": ("fused", None), "feed_forward": ("inner", None)},
}


@pytest.mark.parametrize("name", SOURCES)
def test_where_the_input_of_a_sub_layer_is_had(name: str) -> None:
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
