"""LoRA+: the groups hold every trainable parameter once, each at the rate of its kind."""

import pytest
import torch
from torch import nn

import peft_compiler as pc
from peft_compiler.errors import PeftCompilerError
from tests import zoo


def names_by_rate(tuned: nn.Module, ratio: float = 16.0) -> dict[float, set[str]]:
    names = {id(parameter): name for name, parameter in tuned.named_parameters()}
    groups = pc.parameter_groups(tuned, lr=0.01, ratio=ratio)
    return {
        group["lr"]: {names[id(p)].rpartition("inserted.")[2] for p in group["params"]} for group in groups
    }


def test_each_b_learns_faster_and_nothing_else_does() -> None:
    tuned = pc.compile(
        zoo.build("llama"), "LoRA r=2 on q; LoRA r=2 init=pissa on k; adapters width=2 after FFN"
    )
    adapter = {
        f"feed_forward_adapter.{part}" for part in ("down.weight", "down.bias", "up.weight", "up.bias")
    }
    assert names_by_rate(tuned) == {
        0.01: {"query_lora.down", "key_lora.update.down"} | adapter,
        0.16: {"query_lora.up", "key_lora.update.up"},
    }


def test_the_groups_hold_every_trainable_parameter_once() -> None:
    tuned = pc.compile(zoo.build("mixtral"), "LoRA r=2 on q,v,up; train norm")
    grouped = [id(p) for group in pc.parameter_groups(tuned, lr=0.01) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in tuned.parameters() if p.requires_grad)


def test_a_frozen_a_leaves_one_group() -> None:
    tuned = pc.compile(zoo.build("llama"), "LoRA r=2 freeze_a=true on q")
    assert names_by_rate(tuned, ratio=2) == {0.02: {"query_lora.up"}}


def test_an_optimiser_takes_them() -> None:
    tuned = pc.compile(zoo.build("llama"), "LoRA r=2 on q")
    optimiser = torch.optim.AdamW(pc.parameter_groups(tuned, lr=0.01))
    assert [group["lr"] for group in optimiser.param_groups] == [0.01, 0.16]


def test_what_is_no_rate_or_not_compiled_is_refused() -> None:
    tuned = pc.compile(zoo.build("llama"), "LoRA r=2 on q")
    with pytest.raises(PeftCompilerError) as caught:
        pc.parameter_groups(tuned, lr=0, ratio=-1)
    assert str(caught.value) == "lr=0 and ratio=-1 given, expected positive numbers"
    with pytest.raises(PeftCompilerError, match="a Linear that was not compiled was given"):
        pc.parameter_groups(nn.Linear(2, 2), lr=0.1)
