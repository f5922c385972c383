"""Lower precision while training, and outputs as long as what was given, whatever the prompts."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peft_compiler as pc
from tests import zoo
from tests.citizen.learning import batch, same, trainable, values
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
