"""transformers' trainers train what was inserted, keep that alone, and go on where they were interrupted."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import peft_compiler as pc
from peft_compiler.plan import is_inserted
from peft_compiler.saving.save import inserted_state
from tests import zoo
from tests.citizen.learning import losses, same, trainable, trainer, values

# Dropout, so that an interrupted run has to draw on where it stopped; an MLP that goes when training is over.
SPEC = "LoRA r=2 dropout=0.1 on q,v; adapters width=4 after FFN; deep prompts reparametrised=true width=4"
KEPT: dict[str, Any] = {
    "save_strategy": "steps",
    "save_steps": 3,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "load_best_model_at_end": True,
}


@pytest.mark.parametrize("name", ["llama", "t5", "vit"])
def test_an_interrupted_run_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    base = zoo.build(name)
    before, whole, half = values(base), pc.compile(base, SPEC), pc.compile(base, SPEC)
    uninterrupted = trainer(whole, name, tmp_path / "whole", **KEPT)
    uninterrupted.train()
    resumed = trainer(half, name, tmp_path / "half", **KEPT)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert losses(resumed) == losses(uninterrupted)
    assert same(half, whole.state_dict())
    assert same(base, before)
    assert pc.verify(half).ok


@pytest.mark.parametrize("name", ["llama", "bart", "bert"])
def test_the_loss_falls(name: str, tmp_path: Path) -> None:
    spec = f"{SPEC}; train head" if name == "bert" else SPEC
    run = trainer(pc.compile(zoo.build(name), spec), name, tmp_path, max_steps=30)
    before = run.evaluate(run.train_dataset)["eval_loss"]
    run.train()
    assert run.evaluate(run.train_dataset)["eval_loss"] < before - 0.05


def test_a_checkpoint_holds_what_was_inserted_and_nothing_of_the_base(tmp_path: Path) -> None:
    tuned = pc.compile(zoo.build("llama"), SPEC)
    run = trainer(tuned, "llama", tmp_path, **KEPT)
    run.train()
    run.save_model(str(tmp_path / "final"))
    for folder in (tmp_path / "checkpoint-3", tmp_path / "final"):
        tensors = load_file(folder / "model.safetensors")
        written = {name: tensor for name, tensor in tensors.items() if tensor.numel()}
        assert len(tensors) == len(written) + 2  # and two without values, which say that it is no model
        assert all(map(is_inserted, written))
        assert written.keys() == {*inserted_state(tuned), "inserted.manifest"}
    optimiser = torch.load(tmp_path / "checkpoint-3" / "optimizer.pt", weights_only=True)["state"]
    moments = [tensor for of in optimiser.values() for name, tensor in of.items() if name != "step"]
    assert sum(moment.numel() for moment in moments) == 2 * sum(p.numel() for p in trainable(tuned))


def test_the_best_model_is_loaded_at_the_end(tmp_path: Path) -> None:
    tuned = pc.compile(zoo.build("llama"), "LoRA r=2 on q,v")
    # The loss falls, so what it was half way stays the "best", which is not what the run ends with.
    best = {"metric_for_best_model": "eval_loss", "greater_is_better": True}
    run = trainer(tuned, "llama", tmp_path, **KEPT | best)
    run.train()
    assert run.state.best_model_checkpoint == str(tmp_path / "checkpoint-3")
    kept = load_file(tmp_path / "checkpoint-3" / "model.safetensors")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in inserted_state(tuned).items())


def test_load_takes_the_folder_of_a_trainer(tmp_path: Path) -> None:
    base = zoo.build("gpt2")
    tuned = pc.compile(base, SPEC)
    run = trainer(tuned, "gpt2", tmp_path)
    run.train()
    run.save_model(str(tmp_path / "final"))
    loaded = pc.load(base, tmp_path / "final").eval()
    assert same(loaded, tuned.state_dict())
    assert torch.equal(loaded(**zoo.inputs("gpt2")).logits, tuned.eval()(**zoo.inputs("gpt2")).logits)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("LoRA r=4 on q,v", "'lora r=2 alpha=4 on q,v', this model by 'lora r=4 on q,v'"),
        ("LoRA r=2 on q,v", "'lora r=2 alpha=4 on q,v', this model by 'lora r=2 on q,v'"),
    ],
)
def test_a_checkpoint_of_another_spec_is_refused_and_nothing_is_changed(
    spec: str, said: str, tmp_path: Path
) -> None:
    base = zoo.build("llama")
    trainer(pc.compile(base, "LoRA r=2 alpha=4 on q,v"), "llama", tmp_path, **KEPT).train()
    other = pc.compile(base, spec)
    before = values(other)
    with pytest.raises(pc.InterchangeError) as caught:
        trainer(other, "llama", tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    summary, first, *_ = str(caught.value).split("\n")
    assert summary == "the state does not belong to this compiled model"
    assert first == f"  it is of a model compiled by {said}"
    assert same(other, before)


@pytest.mark.parametrize(
    "settings",
    [
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": False}},
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    ],
    ids=["checkpointing", "reentrant checkpointing", "accumulation"],
)
def test_what_saves_memory_changes_no_loss(settings: dict[str, Any], tmp_path: Path) -> None:
    spec = "LoRA r=2 on q,v; adapters width=4 after FFN; prompt length=3"  # no dropout: it depends on batches
    plain = trainer(pc.compile(zoo.build("llama"), spec), "llama", tmp_path)
    saving = trainer(pc.compile(zoo.build("llama"), spec), "llama", tmp_path, **settings)
    for run in (plain, saving):
        run.train()
    torch.testing.assert_close(losses(saving), losses(plain))


def test_a_model_trained_under_autocast_keeps_every_promise(tmp_path: Path) -> None:
    tuned = pc.compile(zoo.build("llama"), "LoRA r=2 on q,v; adapters width=4 after FFN; prefix length=3")
    run = trainer(tuned, "llama", tmp_path, bf16=True)
    run.train()
    assert losses(run)[-1] < losses(run)[0]
    assert pc.verify(tuned).ok
