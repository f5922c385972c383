"""AdaLoRA's budget: what it is at each step, where it is spent, and that peft spends it alike."""

from pathlib import Path

import peft
import pytest
import torch
from torch import nn

import peft_compiler as pc
from peft_compiler.errors import PeftCompilerError
from peft_compiler.methods.adalora import Triplets
from tests import zoo
from tests.methods.peft_oracle import by_peft, layers_of

SPEC = "AdaLoRA r=4 target_r=2 alpha=6 on q,v"


def loss_of(model: nn.Module) -> torch.Tensor:
    return model(**zoo.inputs("llama")).logits.square().mean()


def trained(steps: int, warmup: int = 1, cooldown: int = 2, interval: int = 1) -> nn.Module:
    tuned = pc.compile(zoo.build("llama"), SPEC, zoo.inputs("llama"))
    optimiser = torch.optim.Adam([p for p in tuned.parameters() if p.requires_grad], lr=0.05)
    allocator = pc.RankAllocator(tuned, steps, warmup, cooldown, interval)
    for _ in range(steps):
        (loss_of(tuned) + 0.1 * allocator.penalty()).backward()
        optimiser.step()
        allocator.step()
        optimiser.zero_grad()
    return tuned


def test_the_budget_falls_along_a_cubic_curve() -> None:
    tuned = pc.compile(zoo.build("llama"), SPEC)
    allocator = pc.RankAllocator(tuned, steps=10, warmup=2, cooldown=4)
    assert [allocator.budget(step) for step in range(1, 11)] == [16, 16, 11, 9, 8, 8, 8, 8, 8, 8]


def test_in_the_end_the_ranks_are_the_target_on_average() -> None:
    tuned = trained(steps=8)
    ranks = pc.ranks_of(tuned)
    assert sum(ranks.values()) == 2 * len(ranks) == 8
    assert len(set(ranks.values())) > 1, "or every site would have the same"
    for path, rank in ranks.items():
        triplets = tuned.get_submodule(path)
        assert int((triplets.values != 0).sum()) == rank
        assert torch.linalg.matrix_rank(triplets.delta()) <= rank


def test_before_the_first_cut_nothing_is_cut() -> None:
    assert set(pc.ranks_of(pc.compile(zoo.build("llama"), SPEC)).values()) == {4}
    assert sum(pc.ranks_of(trained(steps=8, interval=5)).values()) == 8, "the last step of cutting cuts"


def test_ranks_are_saved(tmp_path: Path) -> None:
    tuned = trained(steps=6)
    pc.save(tuned, tmp_path / "adapter")
    loaded = pc.load(zoo.build("llama"), tmp_path / "adapter", zoo.inputs("llama"))
    assert pc.ranks_of(loaded) == pc.ranks_of(tuned)
    assert torch.equal(loss_of(loaded), loss_of(tuned))


def test_the_penalty_is_zero_for_orthogonal_factors_alone() -> None:
    left, right = torch.linalg.qr(torch.randn(8, 3))[0], torch.linalg.qr(torch.randn(6, 3))[0].T
    triplets = Triplets(left, torch.ones(3), right, scale=1.0, target=2)
    assert triplets.penalty().item() == pytest.approx(0, abs=1e-10)
    with torch.no_grad():
        triplets.left.mul_(2)
    assert triplets.penalty().item() == pytest.approx(3 * 3**2)


def test_experts_have_a_budget_together() -> None:
    tuned = pc.compile(zoo.build("mixtral"), "AdaLoRA r=4 target_r=1 on up", zoo.inputs("mixtral"))
    allocator = pc.RankAllocator(tuned, steps=2)
    for _ in range(2):
        tuned(**zoo.inputs("mixtral")).logits.square().mean().backward()
        allocator.step()
    assert list(pc.ranks_of(tuned).values()) != [4 * 4] * zoo.LAYERS
    assert sum(pc.ranks_of(tuned).values()) == zoo.LAYERS * 4


@pytest.mark.parametrize("interval", [1, 2])
def test_ranks_and_logits_are_peft_s(interval: int) -> None:
    base = zoo.build("llama")
    config = peft.AdaLoraConfig(
        init_r=4,
        target_r=2,
        lora_alpha=6,
        tinit=1,
        tfinal=2,
        deltaT=interval,
        total_step=8,
        target_modules=["q_proj", "v_proj"],
    )
    ours, theirs = pc.compile(base, SPEC, zoo.inputs("llama")), by_peft(base, config)
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for mine, other in layers_of(ours, theirs):
            mine.values.copy_(torch.randn(4, generator=draws) * 0.1)
            other.lora_E["default"].copy_(mine.values.unsqueeze(-1))
            other.lora_A["default"].copy_(mine.right)
            other.lora_B["default"].copy_(mine.left)
    allocator = pc.RankAllocator(ours, steps=8, warmup=1, cooldown=2, interval=interval)
    optimisers = [
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
        for model in (ours, theirs)
    ]
    for step in range(1, 9):
        for model, optimiser in zip((ours, theirs), optimisers, strict=True):
            loss_of(model).backward()
            optimiser.step()
        allocator.step()
        theirs.base_model.update_and_allocate(step)
        for optimiser in optimisers:
            optimiser.zero_grad()
        for mine, other in layers_of(ours, theirs):
            assert torch.equal(mine.values != 0, other.lora_E["default"].flatten() != 0), step
    torch.testing.assert_close(loss_of(ours), loss_of(theirs), atol=1e-5, rtol=1e-5)


def test_wrong_schedules_are_refused_all_at_once() -> None:
    tuned = pc.compile(zoo.build("llama"), SPEC)
    with pytest.raises(PeftCompilerError) as caught:
        pc.RankAllocator(tuned, steps=10, warmup=-1, cooldown=11, interval=0, beta_1=1.0)
    assert str(caught.value) == (
        "ranks cannot be allocated\n"
        "  warmup=-1 and cooldown=11 given, expected no negative number of steps\n"
        "  interval=0 given, expected at least one step from cut to cut\n"
        "  warmup=-1 and cooldown=11 leave none of steps=10 for cuts: take less\n"
        "  beta_1=1.0 given, expected a number between 0 and 1"
    )


def test_a_model_without_adalora_is_refused() -> None:
    tuned = pc.compile(zoo.build("llama"), "LoRA r=2 on q")
    with pytest.raises(PeftCompilerError) as caught:
        pc.RankAllocator(tuned, steps=10)
    assert str(caught.value) == (
        "this LlamaForCausalLM has no AdaLoRA, whose ranks could be cut: compile it with one"
    )


def test_a_step_without_gradients_is_refused() -> None:
    allocator = pc.RankAllocator(pc.compile(zoo.build("llama"), SPEC), steps=10)
    with pytest.raises(PeftCompilerError, match=r"call step\(\) after backward\(\) and before zero_grad\(\)"):
        allocator.step()
