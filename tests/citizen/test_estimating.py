"""What training takes, without weights; the formulas are those of docs/devices.md."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import peft_compiler as pc
from peft_compiler.cli import app
from tests import zoo
from tests.citizen.live_memory import LiveMemory
from tests.citizen.quantised_models import plain, quantised

SPEC = "LoRA r=8 on all linear; adapters width=16 after FFN"
BATCH, LENGTH = 4, 128
LARGE = {"70b": (8192, 80, 64, 28672), "405b": (16384, 126, 128, 53248)}
"""Width, layers, heads and inner width of Llama-3 models."""


def decoder() -> nn.Module:
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=256,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


def measured_peak(checkpoints: bool) -> int:
    """Returns the most bytes that live tensors hold in the second step of training."""
    tuned: Any = pc.compile(decoder(), SPEC).train()
    if checkpoints:
        tuned.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        tuned.enable_input_require_grads()
    ids = torch.ones(BATCH, LENGTH, dtype=torch.long)
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad])

    def step() -> None:
        loss = tuned(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    step()
    live = LiveMemory()
    states = [value for state in optimizer.state.values() for value in state.values()]
    gradients = [p.grad for p in tuned.parameters() if p.grad is not None]
    for tensor in (*tuned.parameters(), *gradients, *states):
        live.add(tensor)
    with live:
        step()
    return live.peak


@pytest.mark.parametrize("checkpoints", [False, True])
def test_the_peak_of_a_real_step_is_within_a_tenth_of_the_estimate(checkpoints: bool) -> None:
    made = pc.estimate(decoder(), SPEC, batch=BATCH, length=LENGTH)
    expected = made.peak_with_checkpoints if checkpoints else made.peak
    assert measured_peak(checkpoints) == pytest.approx(expected, rel=0.1)


def test_the_bytes_are_those_of_the_formulas() -> None:
    model = decoder()
    alone, shared = (pc.estimate(model, SPEC, devices, BATCH, LENGTH) for devices in (1, 4))
    weights = sum(parameter.nbytes for parameter in model.parameters())
    block = sum(parameter.nbytes for parameter in model.get_submodule("model.layers.0").parameters())
    inserted = 4 * alone.plan.trainable
    assert alone.always == weights + 4 * inserted
    assert shared.always == (weights + 4 * inserted) / 4 + block
    # What each device keeps depends on its own tokens alone.
    assert shared.kept == alone.kept
    twice = pc.estimate(model, SPEC, 1, 2 * BATCH, LENGTH)
    assert twice.kept.saved == pytest.approx(2 * alone.kept.saved, rel=0.01)


def test_a_quantised_base_takes_what_its_codes_take() -> None:
    made = pc.estimate(quantised("packed as GPTQ"), "LoRA r=4 on q,v")
    codes = pc.estimate(plain(), "LoRA r=4 on q,v")
    assert made.plan.trainable == codes.plan.trainable
    assert sum(made.weights.values()) < sum(codes.weights.values()) / 2


@pytest.mark.parametrize("size", LARGE)
def test_a_large_model_is_estimated_from_its_config(
    size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, golden: Callable[[str, str], None]
) -> None:
    monkeypatch.setenv("TERMINAL_WIDTH", "110")
    width, layers, heads, inner = LARGE[size]
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        intermediate_size=inner,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(tmp_path)
    command = ["plan", str(tmp_path), "LoRA r=16 on all linear", "--devices", "8", "--length", "4096"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    golden(f"plan_{size}.txt", result.output.rstrip())


def test_json_holds_the_numbers_in_bytes(tmp_path: Path) -> None:
    model: Any = zoo.build("gpt2")
    model.config.save_pretrained(tmp_path)
    command = ["plan", str(tmp_path), "LoRA r=4 on q,v", "--devices", "2", "--length", "64", "--json"]
    found = json.loads(CliRunner().invoke(app, command).output)
    memory = found["memory"]
    assert memory["inserted"] == 4 * found["trainable"]
    assert memory["peak"] > memory["peak_with_checkpoints"] > sum(memory["weights"].values()) / 2


def test_a_model_without_tokens_is_refused() -> None:
    with pytest.raises(pc.PlanError) as caught:
        pc.estimate(zoo.build("vit"), "LoRA r=2 on q")
    assert str(caught.value) == (
        "a ViTForImageClassification takes no input_ids: what a step keeps is known of models of tokens only"
    )
