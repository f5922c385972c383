"""Published counts of trainable parameters, exact, on models without weights.

The numbers are those of the papers' own formulas. A count alone proves little, so the
shapes are checked too.
"""

import pytest
import torch
import transformers

import peft_compiler as pc
from peft_compiler.planning import make_plan
from peft_compiler.site import Role
from peft_compiler.spec.read import read_spec
from tests.test_recipes import sites

FIGURES = [
    # arXiv:2106.09685, table 2: 0.3M and 0.8M.
    ("roberta_base", "LoRA r=8 on q,v", 294_912),
    ("roberta_large", "LoRA r=8 on q,v", 786_432),
    # arXiv:2310.11454, table 2: sites (d + r).
    ("roberta_base", "VeRA r=1024 on q,v", 43_008),
    ("roberta_large", "VeRA r=256 on q,v", 61_440),
    # 4.7M; the authors' scripts have r=16, the paper's table prints r=8.
    ("deberta_v2_xxl", "LoRA r=16 on q,v", 4_718_592),
    # Table 15.
    ("gpt3_175b", "LoRA r=1 on q,v", 4_718_592),
    ("gpt3_175b", "LoRA r=8 on q,v", 37_748_736),
    ("gpt3_175b", "LoRA r=64 on q,v", 301_989_888),
    ("gpt3_175b", "LoRA r=1 on q,k,v,o", 9_437_184),
    # Table 15, Adapter-H: L (2 d r + r + d) for each of two adapters a block.
    ("gpt3_175b", "adapters width=1 after attention and FFN", 7_078_080),
    ("gpt3_175b", "adapters width=8 after attention and FFN", 40_109_568),
    ("gpt3_175b", "adapters width=64 after attention and FFN", 304_361_472),
    # loralib's MergedLinear on the fused c_attn.
    ("gpt2_medium", "LoRA r=4 on q,v", 393_216),
    # arXiv:2311.06243, table 1: 0.79M and 0.75M; the biases are trained too.
    ("deberta_v3_base", "BOFT block_size=16 on all linear; BitFit on all linear", 787_968),
    ("deberta_v3_base", "BOFT block_size=8 factors=2 on all linear; BitFit on all linear", 746_496),
    # arXiv:2305.14314 and arXiv:2402.09353.
    ("llama_7b", "LoRA r=64 on all linear", 159_907_840),
    ("llama_7b", "LoRA r=32 on q,k,v,up,down", 56_098_816),
    ("llama_7b", "DoRA r=32 on q,k,v,up,down", 56_975_360),
    # arXiv:2110.07602: length · L · 2 d.
    ("bert_large", "deep prompts length=20 on every layer", 983_040),
    ("bert_large", "deep prompts length=128 on every layer", 6_291_456),
    # Table 3, Adapter-L: one adapter with a layer norm of its own on each block.
    ("gpt2_medium", "adapters width=224 layer_norm=true on block", 11_089_152),
    ("gpt2_large", "adapters width=248 layer_norm=true on block", 23_002_848),
    # arXiv:2106.04647, with the layer norms: adapters of 768 / 32 units after both sub-layers, or one.
    (
        "t5_base",
        "adapters width=24 after attention in self attention; adapters width=24 after FFN; train norm",
        1_855_104,
    ),
    ("t5_base", "pfeiffer adapters width=24; train norm", 951_360),
    ("t5_base", "compacter adapters; train norm", 161_728),
    ("t5_base", "compacter adapters after FFN; train norm", 104_704),
    # arXiv:2110.04366, MAM: prefixes of length 30 and scaled parallel adapters of width 512.
    (
        "bart_large",
        "deep prompts length=30 in any attention; parallel adapters width=512 scale=4 after FFN",
        27_414_528,
    ),
    # arXiv:2404.03592, LLaMA-7B, every layer, the same edit at both ends of the prompt: 0.031%.
    ("llama_7b", "loreft r=8 first=7 last=7", 2_097_408),
    # arXiv:2205.05638: 540K, and of its baselines BitFit, 1.3M, with biases that T5 does not have.
    ("t0_3b", "IA3", 540_672),
    ("t0_3b", "BitFit add=true on q,k,v,o,up,gate; train norm", 1_331_200),
    # arXiv:2106.10199, all biases, those of the layer norms and the pooler too.
    ("bert_base_encoder", "BitFit on linear,norm,head", 102_912),
    # arXiv:2312.11420: every norm, of GPT-2 medium 49 with two vectors each.
    ("gpt2_medium", "train norm", 2 * 49 * 1024),
    # arXiv:2210.08823: 2 d after the six projections and two norms of each block, and the last norm.
    ("vit_base", "SSF", 12 * 2 * (5 * 768 + 3072 + 2 * 768) + 2 * 768),
    # arXiv:2101.00190: without the MLP of 512 units, and with it: P', its first layer, and the second's rows.
    ("gpt2_medium", "prefix length=10 reparametrised=false", 491_520),
    ("gpt2_medium", "prefix length=10", 10 * 1024 + 1025 * 512 + 24 * 513 * 2 * 1024),
    # arXiv:2106.09685, table 15, PrefixEmbed: d (lp + li).
    ("gpt3_175b", "prompt length=40", 491_520),
    ("gpt3_175b", "prompt length=136", 1_671_168),
]


@pytest.mark.parametrize(("model", "sentence", "count"), FIGURES)
def test_the_count_is_the_papers(model: str, sentence: str, count: int) -> None:
    assert make_plan(read_spec(sentence), sites(model), base_parameters=0).trainable == count


def test_the_rows_of_gpt2s_fused_projection_are_thirds() -> None:
    plan = make_plan(read_spec("LoRA r=4 on q,v"), sites("gpt2_medium"), base_parameters=0)
    assert len(plan.insertions) == 48
    rows = {(i.site.role, str(i.site.rows), i.site.width_in, i.site.width_out) for i in plan.insertions}
    assert rows == {
        (Role.QUERY, "[0:1024] of 3072", 1024, 1024),
        (Role.VALUE, "[2048:3072] of 3072", 1024, 1024),
    }


def test_what_is_built_has_the_shapes_of_the_papers() -> None:
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=1024, n_layer=1, n_head=16))
    tuned = pc.compile(
        model, "LoRA r=4 on q,v; adapters width=64 after FFN; deep prompts length=10 on every layer"
    )
    shapes = {
        name.rpartition("inserted.")[2]: tuple(parameter.shape)
        for name, parameter in tuned.named_parameters()
        if parameter.requires_grad
    }
    assert shapes == {
        "query_lora.down": (4, 1024),
        "query_lora.up": (1024, 4),
        "value_lora.down": (4, 1024),
        "value_lora.up": (1024, 4),
        "core_deep_prompts.keys": (16, 10, 64),
        "core_deep_prompts.values": (16, 10, 64),
        "feed_forward_adapter.down.weight": (64, 1024),
        "feed_forward_adapter.down.bias": (64,),
        "feed_forward_adapter.up.weight": (1024, 64),
        "feed_forward_adapter.up.bias": (1024,),
    }
