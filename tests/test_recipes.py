"""The specs of published recipes, each planned on the model of its paper without its weights."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from peft_compiler.analysis.find_sites import find_sites
from peft_compiler.planning import make_plan
from peft_compiler.site import Role, Site
from peft_compiler.spec.read import read_spec
from peft_compiler.spec.write import to_sentence

SPECS = Path(__file__).parents[1] / "specs"
GPT2 = "GPT2LMHeadModel"
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "roberta_base": ("RobertaForSequenceClassification", BASE),
    "roberta_large": ("RobertaForSequenceClassification", LARGE),
    "bert_base": ("BertForSequenceClassification", BASE),
    "bert_base_encoder": ("BertModel", BASE),
    "bert_large": ("BertForSequenceClassification", LARGE),
    "deberta_v3_base": (
        "DebertaV2Model",
        BASE | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True},
    ),
    "deberta_v2_xxl": (
        "DebertaV2Model",
        {
            "hidden_size": 1536,
            "num_hidden_layers": 48,
            "num_attention_heads": 24,
            "intermediate_size": 6144,
            "relative_attention": True,
            "position_buckets": 256,
            "pos_att_type": ["p2c", "c2p"],
            "share_att_key": True,
        },
    ),
    "gpt2_medium": (GPT2, {"n_embd": 1024, "n_layer": 24, "n_head": 16}),
    "gpt2_large": (GPT2, {"n_embd": 1280, "n_layer": 36, "n_head": 20}),
    "gpt3_175b": (GPT2, {"n_embd": 12288, "n_layer": 96, "n_head": 96}),
    "llama_7b": ("LlamaForCausalLM", {}),
    "t0_3b": (
        "T5ForConditionalGeneration",
        {
            "d_model": 2048,
            "d_ff": 5120,
            "num_layers": 24,
            "num_heads": 32,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
        },
    ),
    "t5_base": (
        "T5ForConditionalGeneration",
        {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
    ),
    "bart_large": ("BartForConditionalGeneration", {}),
    "vit_base": ("ViTForImageClassification", {}),
}
"""The class and shape of each model; what is left out is the default of its config."""

RECIPES = {
    "lora_roberta_base": ("roberta_base", 294_912),
    "lora_roberta_large": ("roberta_large", 786_432),
    "lora_deberta_v2_xxl": ("deberta_v2_xxl", 4_718_592),
    "lora_gpt2_medium": ("gpt2_medium", 393_216),
    "lora_gpt3_175b": ("gpt3_175b", 37_748_736),
    "lora_gpt3_175b_all_attention": ("gpt3_175b", 9_437_184),
    "adapter_h_gpt3_175b": ("gpt3_175b", 40_109_568),
    # 48 adapters, the 48 norms of the layers and that of the embeddings.
    "houlsby_bert_large": ("bert_large", 48 * (2 * 1024 * 64 + 64 + 1024) + 49 * 2 * 1024),
    "houlsby": ("bert_base", 24 * (2 * 768 * 48 + 48 + 768) + 25 * 2 * 768),
    "pfeiffer": ("bert_base", 12 * (2 * 768 * 48 + 48 + 768)),
    "adapter_drop_bert_base": ("bert_base", 7 * (2 * 768 * 48 + 48 + 768)),
    "bapna": ("gpt2_medium", 24 * (2 * 1024 * 64 + 64 + 1024 + 2 * 1024)),
    "parallel": ("bart_large", 24 * (2 * 1024 * 512 + 512 + 1024)),
    "mam": ("bart_large", 27_414_528),
    "unipelt": (
        "bert_base",
        24 * (8 * 1536 + 769) + 12 * (20 * 768 + 769) + 12 * (2 * 768 * 48 + 48 + 768 + 769),
    ),
    "compacter": ("t5_base", 161_728),
    "compacter++": ("t5_base", 104_704),
    "ia3": ("t0_3b", 540_672),
    # All but the pooler's.
    "bitfit": ("bert_base", 102_912 - 768),
    "norm_tuning": ("bert_base", 25 * 2 * 768),
    "ssf": ("vit_base", 12 * 2 * (5 * 768 + 3072 + 2 * 768) + 2 * 768),
    "p_tuning_v2": ("bert_large", 983_040),
    "pfeiffer_bert_base": ("bert_base", 12 * (2 * 768 * 48 + 48 + 768)),
    "p_tuning_v2_bert_large": ("bert_large", 983_040),
    "prefix_tuning_gpt2_medium": ("gpt2_medium", 491_520),
    "qlora_llama_7b": ("llama_7b", 159_907_840),
    "dora_baseline_llama_7b": ("llama_7b", 56_098_816),
}
"""The model of each recipe, and its exact count of trainable parameters without the task head."""


@cache
def sites(name: str) -> tuple[Site, ...]:
    kind, shape = MODELS[name]
    model_class = getattr(transformers, kind)
    with torch.device("meta"):
        model = model_class(model_class.config_class(**shape)).eval()
    return find_sites(model)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_as_many_parameters_as_its_paper_says(name: str) -> None:
    where, expected = RECIPES[name]
    # What is left once training is over, as papers count it: of prefixes no MLP.
    plan = make_plan(read_spec(SPECS / f"{name}.yaml").settled(), sites(where), base_parameters=0)
    heads = (insertion for insertion in plan.insertions if insertion.site.role is Role.HEAD)
    assert plan.trainable - sum(insertion.parameters for insertion in heads) == expected


def test_every_recipe_is_counted() -> None:
    assert {path.stem for path in SPECS.glob("*.yaml")} == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_its_paper_and_what_it_binds(name: str) -> None:
    path = SPECS / f"{name}.yaml"
    comment = "".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert re.search(r"arXiv:\d{4}\.\d{5}, .*(section|table|figure|appendix)", comment)
    spec = read_spec(path)
    # A recipe for one model says how many places it has there.
    of_one_model = RECIPES[name][0] in name
    assert all((rule.expect is not None) is of_one_model for rule in spec.rules)
    assert read_spec(to_sentence(spec)) == spec
