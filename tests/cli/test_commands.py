"""Each command does its one thing, as text and as JSON."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import peft_compiler as pc
from tests.cli.conftest import Run
from tests.zoo import inputs

SENTENCE = "LoRA r=4 on q,v"


def test_check_says_the_spec_back(run: Run) -> None:
    result = run("check", "lora rank 4 on value and query")
    assert result.exit_code == 0
    assert result.output == (
        "lora r=4 on v,q\n"
        "\n"
        "rule 1: lora r=4 on v,q\n"
        "  r=4, alpha=by place, dropout=0.0, rank_stabilised=False, bias=False, init=gaussian, "
        "freeze_a=False (arXiv:2106.09685)\n"
        "\n"
        "version: 1\n"
        "rules:\n"
        "  - use: {lora: {r: 4}}\n"
        "    where: {role: [v, q]}\n"
    )


def test_check_gives_json_that_is_a_spec(run: Run) -> None:
    spec = json.loads(run("check", SENTENCE, "--json").output)
    assert pc.Spec.model_validate(spec).rules


def test_schema_is_a_json_schema(run: Run) -> None:
    assert "rules" in json.loads(run("schema").output)["properties"]


@pytest.mark.parametrize("part", ["", "config.json"])
def test_plan_reads_a_folder_or_a_bare_config(part: str, run: Run, gpt2: Path) -> None:
    plan = json.loads(run("plan", gpt2 / part, SENTENCE, "--json").output)
    # Two layers, q and v: (32, 4) down and (4, 32) up each.
    assert plan["trainable"] == 2 * 2 * (32 * 4 + 4 * 32)
    assert {insertion["role"] for insertion in plan["insertions"]} == {"attention.query", "attention.value"}


def test_plan_as_text_is_the_table_of_the_plan(run: Run, gpt2: Path) -> None:
    shown = run("plan", gpt2, SENTENCE).output
    model = AutoModelForCausalLM.from_pretrained(gpt2)
    assert shown == f"{pc.plan(model, SENTENCE)}\n"


def test_sites_lists_every_place(run: Run, gpt2: Path) -> None:
    found = json.loads(run("sites", gpt2, "--json").output)
    model = AutoModelForCausalLM.from_pretrained(gpt2)
    assert [site["name"] for site in found] == [site.name for site in pc.find_sites(model)]
    assert "transformer.h.1.attn.c_attn" in run("sites", gpt2).output


def test_sites_explains_a_fused_projection(run: Run, gpt2: Path) -> None:
    shown = run("sites", gpt2, "--explain", "transformer.h.0.attn.c_attn").output
    assert "transformer.h.0.attn.c_attn is attention.query, rows [0:32] of 96\n  because " in shown
    assert "transformer.h.0.attn.c_attn is attention.value, rows [64:96] of 96\n  because " in shown


def test_sites_suggests_a_path_near_the_one_that_is_none(run: Run, gpt2: Path) -> None:
    result = run("sites", gpt2, "--explain", "transformer.h.0.attn.c_atn")
    assert result.exit_code == 2
    assert result.stderr.startswith(
        "PlanError: no place was found at 'transformer.h.0.attn.c_atn'\n"
        "  near it: transformer.h.0.attn.c_attn"
    )


def test_compile_verify_and_merge_follow_one_another(run: Run, gpt2: Path, tmp_path: Path) -> None:
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    compiled = json.loads(run("compile", gpt2, SENTENCE, "-o", adapter, "--json").output)
    assert compiled["trainable"] == 1024
    assert compiled["bytes"] == sum(file.stat().st_size for file in adapter.iterdir())

    proved = run("verify", gpt2, adapter)
    assert proved.exit_code == 0, proved.output

    assert run("merge", gpt2, adapter, "-o", merged).exit_code == 0
    base, plain = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (gpt2, merged))
    example = inputs("gpt2")
    # LoRA is the identity when it is new.
    torch.testing.assert_close(plain(**example).logits, base(**example).logits)


def test_merge_overwrites_nothing(run: Run, gpt2: Path, tmp_path: Path) -> None:
    result = run("merge", gpt2, tmp_path / "adapter", "-o", gpt2)
    assert result.exit_code == 2
    assert result.stderr == (
        f"InterchangeError: '{gpt2}' exists already\n  name a folder that does not: nothing is lost then\n"
    )
