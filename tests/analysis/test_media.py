"""Towers that only images reach are found without example inputs, where a spec names them."""

from typing import Any

import pytest
import torch
import transformers
from torch import nn

import peft_compiler as pc
from peft_compiler.analysis.capture import capture, capture_with_media
from peft_compiler.analysis.find_sites import sites_of
from peft_compiler.site import Role, Tower

TEXT = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}


def llava() -> nn.Module:
    """Reads the states before the last layer of its images."""
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION, projection_dim=32),
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_index=299,
    )
    return transformers.LlavaForConditionalGeneration(config)


def qwen2_vl() -> nn.Module:
    """Takes the patches of all images in one row."""
    config = transformers.Qwen2VLConfig(
        text_config={**TEXT, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
        vision_config={
            "depth": 3,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 4,
            "mlp_ratio": 2,
            "patch_size": 8,
        },
        image_token_id=298,
        video_token_id=297,
        vision_start_token_id=296,
        vision_end_token_id=295,
        bos_token_id=1,
        eos_token_id=2,
    )
    return transformers.Qwen2VLForConditionalGeneration(config)


def paligemma() -> nn.Module:
    config = transformers.PaliGemmaConfig(
        vision_config={"model_type": "siglip_vision_model", **VISION},
        text_config={**TEXT, "model_type": "gemma", "head_dim": 8},
        image_token_index=299,
        projection_dim=32,
    )
    return transformers.PaliGemmaForConditionalGeneration(config)


MODELS = {"llava": llava, "qwen2_vl": qwen2_vl, "paligemma": paligemma}


def build(name: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MODELS[name]().eval()


@pytest.mark.parametrize("name", MODELS)
def test_images_among_words_reach_both_towers(name: str) -> None:
    model = build(name)
    graph = capture_with_media(model)
    assert graph is not None
    queries = [site for site in sites_of(graph) if site.role is Role.QUERY]
    # A pooling head outside of every stack belongs to no tower.
    assert {site.tower for site in queries} - {None} == {Tower.TEXT, Tower.VISION}
    assert {site.tower for site in sites_of(capture(model)) if site.role is Role.QUERY} == {Tower.TEXT}


@pytest.mark.parametrize("name", ["qwen2_vl", "paligemma"])
def test_what_is_compiled_into_them_keeps_every_promise(name: str) -> None:
    tuned = pc.compile(build(name), "lora r=2 on q, v in vision; deep prompts length=2 in text")
    assert pc.verify(tuned).ok


def test_a_tower_that_a_model_does_not_have_is_refused() -> None:
    with pytest.raises(pc.PlanError) as error:
        pc.plan(build("llava"), "lora on q, v in audio")
    assert "rule 1 (lora) names tower audio, which this model lacks\n    its towers are text, vision;" in str(
        error.value
    )


def test_a_model_of_text_alone_has_no_such_inputs() -> None:
    config = transformers.LlamaConfig(**TEXT)
    assert capture_with_media(transformers.LlamaForCausalLM(config)) is None
