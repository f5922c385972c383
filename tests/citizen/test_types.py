"""Insertions of another type of numbers than their base: float32 beside bfloat16, or what the spec says."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from torch import Tensor, nn

import peft_compiler as pc
from benchmarks.citizen.methods import METHODS
from peft_compiler.plan import is_inserted
from tests import zoo
from tests.citizen.learning import batch, trainable
from tests.test_compiling import main_output

FEW = ("lora", "dora", "ia3", "adapter", "parallel_adapter", "prompt", "deep_prompts", "llama_adapter")
MORE = ("gated_prefix", "direft", "x_lora", "trained_copy")


def in_bfloat16(name: str) -> nn.Module:
    return zoo.build(name).to(torch.bfloat16)


def inserted_types(tuned: nn.Module) -> set[torch.dtype]:
    return {parameter.dtype for name, parameter in tuned.named_parameters() if is_inserted(name)}


def outputs(model: Any, name: str) -> Tensor:
    with torch.no_grad():
        return main_output(model.eval()(**batch(name)))


def with_loaded_adapters(tuned: nn.Module) -> nn.Module:
    """Gives a mixture something to weigh: what it inserts is zero until it is loaded."""
    draws = torch.Generator().manual_seed(0)
    for name, buffer in tuned.named_buffers():
        if is_inserted(name) and name.endswith("loras.up"):
            buffer.normal_(generator=draws)
    return tuned


def learn(tuned: Any, name: str, steps: int, rate: float, kind: Any = torch.optim.AdamW) -> list[float]:
    optimiser = kind(trainable(tuned), lr=rate)
    losses: list[float] = []
    for _ in range(steps):
        loss = tuned(**batch(name)).loss
        loss.backward()
        assert all(p.grad is None or p.grad.dtype == p.dtype for p in trainable(tuned))
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_in_float32_beside_bfloat16(method: str, tmp_path: Path) -> None:
    base = in_bfloat16("llama")
    tuned = pc.compile(base, METHODS[method])
    assert inserted_types(tuned) == {torch.float32}
    assert {p.dtype for p in base.parameters()} == {torch.bfloat16}
    insertions = pc.plan(base, METHODS[method]).insertions
    if all(insertion.method.starts_as_identity() for insertion in insertions):
        assert torch.equal(outputs(tuned, "llama"), outputs(base, "llama"))
    before = outputs(with_loaded_adapters(tuned), "llama")
    learn(tuned.train(), "llama", 3, 0.02)
    after = outputs(tuned, "llama")
    assert after.dtype == torch.bfloat16
    assert not torch.equal(after, before)
    ids = batch("llama")["input_ids"]
    assert tuned.generate(ids, max_new_tokens=2, do_sample=False).shape == (4, ids.shape[1] + 2)  # pyright: ignore
    pc.save(tuned, tmp_path / "adapter")
    again = pc.load(base, tmp_path / "adapter")
    assert inserted_types(again) == {torch.float32}
    assert torch.equal(outputs(again, "llama"), after)


@pytest.mark.parametrize("method", [*FEW, *MORE])
@pytest.mark.parametrize("name", ["gpt2", "bert", "t5"])
def test_other_forwards_take_what_is_cast_back(name: str, method: str) -> None:
    tuned = pc.compile(in_bfloat16(name), METHODS[method])
    before = outputs(with_loaded_adapters(tuned), name)
    learn(tuned, name, 2, 0.05)
    assert inserted_types(tuned) == {torch.float32}
    assert before.dtype == torch.bfloat16
    assert not torch.equal(outputs(tuned, name), before)


@pytest.mark.parametrize("method", [*FEW, "trained_copy", "bitfit"])
def test_what_is_promised_is_kept_beside_bfloat16(method: str) -> None:
    report = pc.verify(pc.compile(in_bfloat16("llama"), METHODS[method]))
    assert report.ok, str(report)


def test_small_steps_are_lost_in_bfloat16_and_kept_in_float32() -> None:
    base = in_bfloat16("llama")
    rounded = pc.compile(base, "train norm; dtype bfloat16")
    precise = pc.compile(base, "train norm")
    assert (inserted_types(rounded), inserted_types(precise)) == ({torch.bfloat16}, {torch.float32})
    start = [parameter.clone() for parameter in trainable(rounded)]
    for tuned in (rounded, precise):
        learn(tuned, "llama", 10, 1e-3)
    assert all(map(torch.equal, trainable(rounded), start))
    assert not torch.equal(outputs(precise, "llama"), outputs(base, "llama"))


@pytest.mark.parametrize("base_type", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_spec_may_choose_the_type(dtype: str, base_type: torch.dtype, tmp_path: Path) -> None:
    base = zoo.build("llama").to(base_type)
    spec = f"LoRA r=2 on q,v; adapters width=4 after FFN; deep prompts length=2; train head; dtype {dtype}"
    assert str(pc.plan(base, spec)).endswith(f"; kept in {dtype}")
    tuned = pc.compile(base, spec)
    assert inserted_types(tuned) == {getattr(torch, dtype)}
    # Not AdamW: its 1e-8 is nothing in float16.
    losses = learn(tuned.train(), "llama", 4, 0.5, torch.optim.SGD)
    assert losses[-1] < losses[0]
    pc.save(tuned, tmp_path / "adapter")
    again = pc.load(base, tmp_path / "adapter")
    assert inserted_types(again) == {getattr(torch, dtype)}
    assert torch.equal(outputs(again, "llama"), outputs(tuned, "llama"))
    size = sum(parameter.nbytes for parameter in trainable(tuned))
    assert pc.estimate(base, spec, length=8).trainable == size


def test_merging_gives_weights_in_the_type_of_the_base() -> None:
    base = in_bfloat16("llama")
    tuned = pc.compile(base, "LoRA r=2 on q; DoRA r=2 on v; IA3 on down; train norm; dtype float32")
    learn(tuned, "llama", 3, 0.02)
    merged = pc.merge(tuned)
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(outputs(merged, "llama"), outputs(tuned, "llama"), atol=0.02, rtol=0.05)


def test_under_autocast_both_types_learn_too() -> None:
    tuned = pc.compile(in_bfloat16("llama"), METHODS["all together"])
    with torch.autocast("cpu", torch.bfloat16):
        losses = learn(tuned, "llama", 5, 0.02)
    assert losses[-1] < losses[0]


def test_a_copy_in_float32_computes_what_the_base_does_in_every_thread() -> None:
    base = in_bfloat16("llama")
    tuned = pc.compile(base, "train head, norm, embedding")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: outputs(tuned, "llama"), range(16)))
    assert all(torch.equal(each, outputs(base, "llama")) for each in found)
    assert inserted_types(tuned) == {torch.float32}


def test_types_meet_without_a_graph_break() -> None:
    tuned = pc.compile(in_bfloat16("llama"), "LoRA r=2 on q,v; adapters width=4 after FFN; train head, norm")
    inputs = {**zoo.inputs("llama", 2, 7), "use_cache": False}
    torch._dynamo.reset()
    compiled = torch.compile(tuned.eval(), fullgraph=True, backend="aot_eager", dynamic=True)
    expected = main_output(tuned(**inputs))
    found = main_output(compiled(**inputs))
    torch.testing.assert_close(found, expected, atol=0.01, rtol=0)
    found.square().mean().backward()
    assert all(parameter.grad is not None for parameter in trainable(tuned))


def test_copies_that_lie_elsewhere_are_cast_too() -> None:
    tuned = pc.compile(in_bfloat16("llama"), "LoRA r=2 on q; train head, norm, embedding")
    expected = outputs(tuned, "llama")
    found = outputs(cpu_offload(tuned, torch.device("cpu")), "llama")
    torch.testing.assert_close(found, expected, atol=0.01, rtol=0)


def test_moving_all_to_one_type_moves_the_insertions() -> None:
    tuned = pc.compile(in_bfloat16("llama"), METHODS["all together"])
    assert inserted_types(tuned.to(torch.float32)) == {torch.float32}
    assert outputs(tuned, "llama").dtype == torch.float32
    assert inserted_types(tuned.to(torch.bfloat16)) == {torch.bfloat16}
    learn(tuned, "llama", 1, 0.01)
