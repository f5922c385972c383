"""AdaLoRA's allocator is taken up again with its model: what was cut, and what mattered so far."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

import peft_compiler as pc
from tests import zoo
from tests.citizen.learning import batch, same, trainable, values

SPEC = "AdaLoRA r=4 target_r=1 on q,v"


def steps(tuned: Any, optimiser: Any, allocator: pc.RankAllocator, count: int) -> list[float]:
    found: list[float] = []
    for _ in range(count):
        loss = tuned(**batch("llama")).loss + 0.1 * allocator.penalty()
        loss.backward()
        optimiser.step()
        allocator.step()
        optimiser.zero_grad()
        found.append(loss.item())
    return found


def learner() -> tuple[Any, torch.optim.Optimizer, pc.RankAllocator]:
    tuned = pc.compile(zoo.build("llama"), SPEC)
    return (
        tuned,
        torch.optim.AdamW(trainable(tuned), lr=0.02),
        pc.RankAllocator(tuned, 8, warmup=1, cooldown=2),
    )


def test_ranks_are_cut_as_without_an_interruption(tmp_path: Path) -> None:
    whole, optimiser, allocator = learner()
    steps(whole, optimiser, allocator, 4)
    torch.save([pc.checkpoint(whole), optimiser.state_dict(), allocator.state_dict()], tmp_path / "half.pt")
    expected = steps(whole, optimiser, allocator, 4)
    again = learner()
    for each, state in zip(again, torch.load(tmp_path / "half.pt", weights_only=True), strict=True):
        each.load_state_dict(state)
    assert steps(*again, 4) == expected
    assert same(again[0], whole.state_dict())
    assert pc.ranks_of(again[0]) == pc.ranks_of(whole)
    assert sum(pc.ranks_of(whole).values()) == 4


def test_accelerate_keeps_it_once_it_is_registered(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    pc.save_insertions_only(accelerator)
    tuned, optimiser, allocator = learner()
    tuned, optimiser = accelerator.prepare(tuned, optimiser)
    accelerator.register_for_checkpointing(allocator)
    steps(tuned, optimiser, allocator, 3)
    accelerator.save_state(str(tmp_path))
    expected = steps(tuned, optimiser, allocator, 5)
    kept = values(tuned)
    accelerator.load_state(str(tmp_path))
    assert steps(tuned, optimiser, allocator, 5) == expected
    assert same(tuned, kept)


def test_the_state_of_another_schedule_or_model_is_refused() -> None:
    tuned, _, allocator = learner()
    with pytest.raises(pc.PeftCompilerError) as caught:
        pc.RankAllocator(tuned, 9, warmup=2).load_state_dict(allocator.state_dict())
    assert caught.value.problems == (
        "steps=8 there, 9 here",
        "warmup=1 there, 2 here",
        "cooldown=2 there, 0 here",
    )
    other = pc.RankAllocator(pc.compile(zoo.build("llama"), "AdaLoRA r=4 on q"), 8, warmup=1, cooldown=2)
    with pytest.raises(pc.PeftCompilerError, match="it is of other AdaLoRAs than those of this model"):
        other.load_state_dict(allocator.state_dict())
