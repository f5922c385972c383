"""The coverage benchmark: a fixed sample of its rows, and what it derives from the fields of a config."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import (
    BambaConfig,
    Dinov2Config,
    GPT2Config,
    JambaConfig,
    LlamaConfig,
    Qwen2VLConfig,
    Swin2SRConfig,
)

from benchmarks.coverage.__main__ import CODE
from benchmarks.coverage.completing import complete
from benchmarks.coverage.depth import DEPTH, cut
from benchmarks.coverage.oracle import compare, roles_by_name
from benchmarks.coverage.report import report
from benchmarks.coverage.results import digest_of, read_rows
from benchmarks.coverage.sentences import WHOLE, sentence_for
from benchmarks.coverage.targets import all_targets
from benchmarks.coverage.widths import VOCABULARY, shrink
from benchmarks.coverage.workers import Limits, OutOfTimeError, run_all
from peft_compiler.analysis.capture import capture
from peft_compiler.analysis.find_sites import sites_of
from tests.sites import attention

ROOT = Path(__file__).parents[2]
SAMPLE = (
    "albert", "bert", "deepseek_v3", "gpt2", "hiera", "jamba", "llama", "mamba", "mixtral", "patchtst",
    "qwen2_5_vl_vision", "segformer", "siglip2_vision_model", "t5", "vit", "wav2vec2", "xlnet",
)  # fmt: skip
"""Every kind of model, and layouts that were hard to get right."""


def test_a_sample_of_types_gives_the_rows_that_it_gave(
    tmp_path: Path, golden: Callable[[str, str], None]
) -> None:
    results, page = tmp_path / "results.jsonl", tmp_path / "page.md"
    command = [sys.executable, "-m", "benchmarks.coverage", *SAMPLE]
    command += ["--results", str(results), "--report", str(page)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    shown = page.read_text()
    golden("coverage_sample.md", shown[shown.index("| type |") :].rstrip())
    before = results.stat().st_mtime_ns
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    assert read_rows(results).keys() == set(SAMPLE)
    assert all(row["code"] == digest_of(*CODE) for row in read_rows(results).values())
    assert page.read_text() == shown  # nothing was left to do
    assert results.stat().st_mtime_ns >= before


def test_every_type_has_a_class() -> None:
    targets = all_targets()
    assert len(targets) > 600
    assert (targets["llama"].class_name, targets["t5"].kind) == ("LlamaForCausalLM", "seq2seq")
    assert targets["vit"].known_kind == "vision"


def test_a_cut_config_keeps_every_kind_of_layer() -> None:
    jamba = JambaConfig()
    cut(jamba)
    assert len(set(jamba.layers_block_type)) == 2
    llama = LlamaConfig(num_hidden_layers=3)
    cut(llama)
    assert llama.num_hidden_layers == 3
    bamba = BambaConfig(num_hidden_layers=8, attn_layer_indices=[5])
    cut(bamba)
    assert len(set(bamba.layers_block_type)) == 2
    gpt2 = GPT2Config()
    cut(gpt2)
    assert gpt2.n_layer == DEPTH
    sharing = LlamaConfig(num_kv_shared_layers=15)
    cut(sharing)
    assert sharing.num_kv_shared_layers == 0
    stages = Swin2SRConfig()
    cut(stages)
    assert len(stages.depths) == len(stages.num_heads) == DEPTH


def test_a_cut_backbone_gives_out_states_of_layers_that_are_left() -> None:
    config = Dinov2Config(out_indices=[3, 6, 9, 12])
    cut(config)
    assert config.stage_names == ["stem", "stage1", "stage2", "stage3", "stage4"]
    assert config.out_features == ["stage1", "stage2", "stage3", "stage4"]
    last = Dinov2Config()
    cut(last)
    assert last.out_indices == [DEPTH]


def test_a_config_is_completed_with_what_its_model_needs() -> None:
    config = LlamaConfig(layer_types=None, vocabulary_map=None, indexer_budget=None, sizes=(3, 4))
    config.rope_parameters = {}
    complete(config)
    assert config.layer_types == ["full_attention"] * config.num_hidden_layers
    assert config.rope_parameters["full_attention"]["rope_type"] == "default"
    assert config.vocabulary_map["<image>"] < config.vocab_size
    assert (config.indexer_budget, config.sizes) == (16, [3, 4])


def test_a_small_config_keeps_what_belongs_together() -> None:
    default, config = Qwen2VLConfig(), Qwen2VLConfig()
    shrink(config, images=True)
    text, vision = config.text_config, config.vision_config
    assert text.vocab_size == VOCABULARY
    assert text.hidden_size < default.text_config.hidden_size
    factor = default.text_config.hidden_size // text.hidden_size
    assert vision.hidden_size * factor == default.vision_config.hidden_size
    tokens = [config.image_token_id, config.video_token_id]
    assert len(set(tokens)) == 2
    assert all(token < VOCABULARY for token in tokens)


def test_images_of_every_tower_get_small_together() -> None:
    config = LlamaConfig(image_size=[1024, 1024], backbone_feature_sizes=[[256, 256], [64, 64]])
    shrink(config, images=True)
    assert (config.image_size, config.backbone_feature_sizes) == ([64, 64], [[16, 16], [4, 4]])
    video = LlamaConfig(crop_size=256, patch_size=16, frames_per_clip=64)
    shrink(video, images=True)
    assert (video.crop_size, video.frames_per_clip) == (64, 8)


def test_heads_of_another_kind_do_not_keep_a_config_from_getting_small() -> None:
    config = LlamaConfig(num_attention_heads=64, hidden_size=4096, index_n_heads=4, num_pos_feats=128)
    shrink(config, images=False)
    assert (config.num_attention_heads, config.hidden_size) == (2, 128)
    assert (config.index_n_heads, config.num_pos_feats) == (1, 4)


def test_every_vocabulary_of_a_config_gets_small() -> None:
    config = LlamaConfig(vocab_size_per_layer_input=262144)
    shrink(config, images=False)
    assert (config.vocab_size, config.vocab_size_per_layer_input) == (VOCABULARY, VOCABULARY)


def test_prompts_are_shorter_where_a_tower_has_fewer_positions() -> None:
    named = {"q": 1, "k": 1, "v": 1, "up": 1, "down": 1}
    of_sixteen = sentence_for(attention("attention", "block", 0, positions=16), named)
    assert of_sixteen.text.endswith("; deep prompts length=8 on every layer")
    assert of_sixteen.whole
    assert sentence_for(attention("attention", "block", 0, positions=512), named).text == WHOLE


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("model.layers.0.self_attn.q_proj.weight", {"q"}),
        ("h.0.attn.c_attn.weight", {"q", "k", "v"}),
        ("encoder.layer.0.attention.output.dense.weight", {"o"}),
        ("encoder.layer.0.output.dense.weight", {"down"}),
        ("layers.0.mlp.gate_up_proj.weight", {"up"}),
        ("model.layers.0.mlp.gate.weight", set()),
        ("model.layers.0.feed_forward.gate.weight", set()),
        ("model.layers.0.mlp.gate.down_proj.weight", set()),
        ("model.layers.0.input_layernorm.mlp.fc1.weight", set()),
        ("lm_head.weight", set()),
        ("mask_head.fc1.weight", set()),
    ],
)
def test_names_tell_roles(name: str, roles: set[str]) -> None:
    assert roles_by_name(name) == roles


def work(item: str) -> dict[str, Any]:
    if item == "crashes":
        os._exit(3)
    if item == "hangs":
        time.sleep(60)
    if item == "spins":
        try:
            while True:
                pass
        except OutOfTimeError as error:
            return {"item": str(error)}
    if item == "spins in C":
        sum(range(10**12))
    return {"item": item}


def test_a_worker_that_ends_early_or_never_is_a_result_too() -> None:
    limits = Limits(processor_seconds=1, wall_seconds=8)
    found = dict(run_all(work, ["fine", "crashes", "hangs", "spins", "spins in C"], 2, limits))
    assert found["fine"] == {"item": "fine"}
    assert "exit 3" in str(found["crashes"])
    assert "exit -9" in str(found["hangs"])
    assert found["spins"] == {"item": "more than 1 seconds of processor time"}
    assert "exit -9" in str(found["spins in C"])


def test_the_report_says_what_was_refused_and_why() -> None:
    row = {
        "type": "example",
        "kind": "causal",
        "built": True,
        "ran": True,
        "inputs": "derived",
        "attention": True,
        "sites": {"attention.query": 4},
        "oracle": {
            "missing": ["v: h.#.v"],
            "mixer": [],
            "wrong": [],
            "unnamed": [],
            "excluded": ["up: head.fc1: part of a head"],
        },
        "planned": "PlanError: no v",
        "sentence": "LoRA r=8 on q,v",
        "does_not_apply": [],
    }
    page = report([json.loads(json.dumps(row))], "torch")
    assert "| example | causal | 4 / 0 / 0 / 0 | 1 missing | refused by the plan | PlanError: no v |" in page
    assert "- example, missing: `v: h.#.v`\n  - not explained\n" in page
    assert "- part of a head (1 types)\n  - example: `up: head.fc1`\n" in page


class Recurrent(nn.Module):
    """A linear attention whose output is changed by its own forward, so that it is no place."""

    def __init__(self) -> None:
        super().__init__()
        part = {name: nn.Linear(8, 8) for name in ("key", "value", "output")}
        self.layers = nn.ModuleList([nn.ModuleDict({"attention": nn.ModuleDict(part)})])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        key, value, output = self.layers[0]["attention"].values()
        return x + functional.linear((key(x).exp() * value(x)).cumsum(1), output.weight / 2)


def test_the_output_of_a_linear_attention_is_one_of_a_mixer() -> None:
    graph = capture(Recurrent(), torch.ones(2, 3, 8))
    compared = compare(graph, sites_of(graph))
    assert (compared.missing, compared.wrong) == ((), ())
    assert compared.mixer == tuple(
        f"{role}: layers.#.attention.{name}" for role, name in (("k", "key"), ("o", "output"), ("v", "value"))
    )


class Deformable(nn.Module):
    """Layers with a value and no key, beside an attention whose parts lie one deeper, and a head."""

    def __init__(self) -> None:
        super().__init__()
        part = {name: nn.ModuleDict({"linear": nn.Linear(8, 8)}) for name in ("q_proj", "k_proj", "v_proj")}
        self.layers = nn.ModuleList([nn.ModuleDict({"attn": nn.ModuleDict(part)})])
        self.deformable = nn.ModuleDict({"value_proj": nn.Linear(8, 8)})
        self.mask_head = nn.ModuleDict({"fc1": nn.Linear(8, 8)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part["linear"](x) for part in self.layers[0]["attn"].values())
        x = x + functional.scaled_dot_product_attention(q, k, v)
        return self.mask_head["fc1"](self.deformable["value_proj"](x))


def test_what_is_left_out_is_named_with_its_reason() -> None:
    graph = capture(Deformable(), torch.ones(2, 3, 8))
    compared = compare(graph, sites_of(graph))
    assert (compared.missing, compared.wrong) == ((), ())
    assert [compared.named[role] for role in "qkv"] == [1, 1, 1]
    assert compared.excluded == (
        "up: mask_head.fc1: two layers outside every list of blocks: a head or an embedding",
        "v: deformable.value_proj: a query or a value with no key beside it: deformable attention, or scores "
        "of a head",
    )
