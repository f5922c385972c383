"""Lower precision while training, and outputs as long as what was given, whatever the prompts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peft_compiler as pc
from tests import zoo
from tests.citizen.learning import batch, same, trainable, trainer, values
from tests.citizen.learning import losses as losses_of
from tests.test_compiling import main_output

SPEC = "LoRA r=2 on q,v; adapters width=4 after FFN; prefix length=3 width=4"


def losses(tuned: Any, dtype: torch.dtype | None, scaler: torch.amp.GradScaler | None = None) -> list[float]:
    """The losses of a plain loop under autocast."""
    optimiser = torch.optim.AdamW(trainable(tuned), lr=0.02)
    found: list[float] = []
    for _ in range(5):
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = tuned(**batch("llama")).loss
        if scaler is None:
            loss.backward()
            optimiser.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimiser)
            scaler.update()
        optimiser.zero_grad()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_losses_by_rounding_alone(dtype: torch.dtype) -> None:
    base = zoo.build("llama")
    before = values(base)
    exact = losses(pc.compile(base, SPEC), None)
    scaler = torch.amp.GradScaler("cpu") if dtype is torch.float16 else None
    rounded = losses(pc.compile(base, SPEC), dtype, scaler)
    torch.testing.assert_close(rounded, exact, atol=0.01, rtol=0)
    assert rounded != exact
    assert rounded[-1] < rounded[0]
    assert same(base, before)


def lengths(outputs: Any) -> Any:
    """The shapes of all outputs but caches, which hold more with prefixes."""
    if isinstance(outputs, Tensor):
        return tuple(outputs.shape)
    if isinstance(outputs, dict):
        return {name: lengths(each) for name, each in outputs.items() if name != "past_key_values"}
    return [lengths(each) for each in outputs]


@pytest.mark.parametrize(
    "spec",
    [
        "prompt length=3",
        "p-tuning length=3 encoder=mlp",
        "prefix length=3 width=4",
        "deep prompts length=3",
        "llama-adapter length=3",
    ],
)
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5", "bart"])
def test_outputs_are_as_long_as_what_was_given(name: str, spec: str) -> None:
    base: nn.Module = zoo.build(name, attention="eager")
    tuned = pc.compile(base, spec).train()
    given = batch(name) | {"output_hidden_states": True, "output_attentions": True}
    found, expected = lengths(tuned(**given)), lengths(base.train()(**given))
    assert found == expected


def test_two_specs_on_one_base_know_nothing_of_each_other() -> None:
    model = zoo.build("llama")
    first, second = pc.compile(model, "LoRA on q"), pc.compile(model, "LoRA r=2 on q; adapters after FFN")
    expected = main_output(second(**zoo.inputs("llama")))
    with torch.no_grad():
        for parameter in first.parameters():
            if parameter.requires_grad:
                parameter.fill_(1.0)
    assert torch.equal(main_output(second(**zoo.inputs("llama"))), expected)
    assert not torch.equal(main_output(first(**zoo.inputs("llama"))), expected)


@pytest.mark.parametrize("base_type", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("setting", ["bf16", "fp16"])
def test_a_trainer_in_lower_precision_differs_by_rounding_alone(
    setting: str, base_type: torch.dtype, tmp_path: Path
) -> None:
    base = zoo.build("llama").to(base_type)
    before = values(base)
    exact = trainer(pc.compile(zoo.build("llama"), SPEC).eval(), "llama", tmp_path / "exact")
    exact.train()
    tuned = pc.compile(base, SPEC).eval()
    rounded = trainer(tuned, "llama", tmp_path / "rounded", **{setting: True})
    rounded.train()
    assert rounded.accelerator.mixed_precision == setting
    found, expected = losses_of(rounded), losses_of(exact)
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)
    # On a CPU accelerate takes fp16 and casts nothing: what is lower then is the base, if it is.
    assert (found != expected) == (setting == "bf16" or base_type is not torch.float32)
    assert found[-1] < found[0]
    assert {parameter.dtype for parameter in trainable(tuned)} == {torch.float32}
    assert same(base, before)


def test_a_trainer_in_bfloat16_goes_on_bit_for_bit(tmp_path: Path) -> None:
    base = zoo.build("llama").to(torch.bfloat16)
    kept = {"save_strategy": "steps", "save_steps": 3, "bf16": True}
    whole, half = pc.compile(base, SPEC), pc.compile(base, SPEC)
    trainer(whole, "llama", tmp_path / "whole", **kept).train()
    resumed = trainer(half, "llama", tmp_path / "half", **kept)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert same(half, whole.state_dict())
