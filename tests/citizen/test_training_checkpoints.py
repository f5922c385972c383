"""Checkpoints without a trainer: plain loops, accelerate, and folders that transformers has models write."""

import copy
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

import peft_compiler as pc
from peft_compiler.plan import is_inserted
from tests import zoo
from tests.citizen.learning import batch, same, trainable, values
from tests.interchange.trained import train

SPEC = "LoRA r=2 on q,v; prefix length=3 width=4"
OTHER = "the state does not belong to this compiled model"


def steps(tuned: Any, optimiser: Any, count: int) -> list[float]:
    """The losses of a plain loop."""
    found: list[float] = []
    for _ in range(count):
        loss = tuned(**batch("llama")).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        found.append(loss.item())
    return found


def learner(base: nn.Module, spec: str = SPEC) -> tuple[nn.Module, torch.optim.Optimizer]:
    tuned = pc.compile(base, spec)
    return tuned, torch.optim.AdamW(trainable(tuned), lr=0.02)


def refused(tuned: nn.Module, state: Any, strict: bool = True) -> str:
    """What is said when a state is given; nothing may have changed."""
    before = values(tuned)
    with pytest.raises(pc.InterchangeError) as caught:
        tuned.load_state_dict(state, strict)
    assert same(tuned, before)
    return str(caught.value)


def test_a_plain_loop_goes_on_bit_for_bit(tmp_path: Path) -> None:
    base = zoo.build("llama")
    before, (whole, optimiser) = values(base), learner(base)
    first = steps(whole, optimiser, 3)
    torch.save([pc.checkpoint(whole), optimiser.state_dict()], tmp_path / "half.pt")
    expected = steps(whole, optimiser, 3)
    again, taken_up = learner(base)
    state, moments = torch.load(tmp_path / "half.pt", weights_only=True)
    again.load_state_dict(state)
    taken_up.load_state_dict(moments)
    assert steps(again, taken_up, 3) == expected
    assert expected[-1] < first[0]
    assert same(again, whole.state_dict())
    assert same(base, before)
    assert all(map(is_inserted, state))


def test_a_whole_state_is_taken_too_but_never_changes_the_base() -> None:
    base = zoo.build("llama")
    tuned = train(pc.compile(base, SPEC), seed=0)
    again = pc.compile(base, SPEC)
    again.load_state_dict(tuned.state_dict())
    assert same(again, tuned.state_dict())
    state = values(tuned)
    state["model.norm.weight"] += 1
    assert refused(again, state) == (
        f"{OTHER}\n  model.norm.weight has other values: the base is frozen, and others may share it"
    )


def test_what_has_shared_insertions_names_them_once_and_takes_them_back() -> None:
    tuned = train(pc.compile(zoo.build("llama"), "VeRA r=4 on q,v; prefix length=3 width=4"), seed=0)
    state = copy.deepcopy(pc.checkpoint(tuned))
    assert sum(is_inserted(name) for name in tuned.state_dict()) > len(state) - 1
    again = pc.compile(zoo.build("llama"), "VeRA r=4 on q,v; prefix length=3 width=4")
    again.load_state_dict(state)
    assert same(again, tuned.state_dict())


def test_a_state_goes_through_whatever_holds_the_model() -> None:
    tuned = train(pc.compile(zoo.build("llama"), SPEC), seed=0)
    again = nn.ModuleDict({"model": pc.compile(zoo.build("llama"), SPEC), "more": nn.Linear(2, 2)})
    state = {f"model.{name}": tensor for name, tensor in pc.checkpoint(tuned).items()}
    again.load_state_dict(
        state | {f"more.{name}": each for name, each in nn.Linear(2, 2).state_dict().items()}
    )
    assert same(again["model"], tuned.state_dict())
    again.load_state_dict({"more.bias": torch.ones(2)}, strict=False)  # says nothing of the compiled model


@pytest.mark.parametrize("strict", [True, False])
def test_all_that_is_wrong_with_a_state_is_said_at_once(strict: bool) -> None:
    base = zoo.build("llama")
    path = "model.layers.0.self_attn.q_proj.inserted.query_lora"
    state = pc.checkpoint(pc.compile(base, SPEC))
    state[f"{path}.up"] = state[f"{path}.up"].T
    state[f"{path}.strange"] = state.pop(f"{path}.down")
    assert refused(pc.compile(base, SPEC), state, strict).split("\n") == [
        OTHER,
        f"  {path}.down is missing",
        f"  {path}.strange is not expected: the spec inserts nothing of that name",
        f"  {path}.up has the shape (2, 32), expected (32, 2)",
    ]


def test_a_state_of_something_else_is_refused() -> None:
    base, other = zoo.build("llama"), zoo.build("llama")
    with torch.no_grad():
        other.model.norm.weight += 1
    tuned = pc.compile(base, SPEC)
    nothing = f"{OTHER}\n  it holds nothing that was inserted; expected 15 tensors, as checkpoint() gives"
    assert refused(tuned, base.state_dict(), strict=False) == nothing
    assert refused(tuned, {}, strict=False) == nothing
    elsewhere = pc.checkpoint(pc.compile(other, SPEC))
    assert refused(tuned, elsewhere) == f"{OTHER}\n  it is of a model on a base with other weights"


def test_copies_take_checkpoints_too() -> None:
    tuned = train(pc.compile(zoo.build("llama"), SPEC), seed=0)
    fresh = pc.compile(zoo.build("llama"), SPEC)
    for copied in (copy.deepcopy(fresh), pickle.loads(pickle.dumps(fresh))):
        copied.load_state_dict(pc.checkpoint(tuned))
        assert same(copied, tuned.state_dict())
        assert type(copied) is type(tuned)


def test_accelerate_saves_and_loads_insertions_only(tmp_path: Path) -> None:
    base, head = zoo.build("llama"), nn.Linear(2, 2)
    before, (whole, optimiser) = values(base), learner(base)
    accelerator = Accelerator(cpu=True)
    pc.save_insertions_only(accelerator)
    whole, optimiser, head = accelerator.prepare(whole, optimiser, head)
    steps(whole, optimiser, 3)
    accelerator.save_state(str(tmp_path))
    written = load_file(tmp_path / "inserted_0.safetensors")
    assert written.keys() == pc.checkpoint(whole).keys()
    assert load_file(tmp_path / "model.safetensors").keys() == {"weight", "bias"}
    expected, kept = steps(whole, optimiser, 3), values(head)
    with torch.no_grad():
        head.weight.zero_()
    accelerator.load_state(str(tmp_path))
    assert steps(whole, optimiser, 3) == expected
    assert same(head, kept)
    assert same(base, before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    train(pc.compile(zoo.build("llama"), SPEC), seed=0).save_pretrained(tmp_path / "tuned")
    return tmp_path / "tuned"


def test_a_folder_holds_insertions_and_what_identifies_their_base(folder: Path) -> None:
    assert sorted(each.name for each in folder.iterdir()) == [
        "adapter.json",
        "config.json",
        "model.safetensors",
    ]
    expected = train(pc.compile(zoo.build("llama"), SPEC), seed=0)
    loaded = pc.load(zoo.build("llama"), folder)
    assert same(loaded, expected.state_dict())
    pc.compile(zoo.build("llama"), "LoRA r=3 on q").save_pretrained(folder)  # the next one takes its place
    assert len(load_file(folder / "model.safetensors")) == 5 + 2


def test_a_folder_is_no_model_whoever_reads_it(folder: Path) -> None:
    base = zoo.build("llama")
    said = (
        "the folder holds what was inserted into a model, not the model itself: load the base from where it "
        "is, then take peft_compiler.load(base, folder)"
    )
    with pytest.raises(pc.InterchangeError) as caught:
        type(pc.compile(base, SPEC)).from_pretrained(folder)
    assert str(caught.value) == f"{folder}: not a LlamaForCausalLM\n  {said}"
    for reads in (type(base), AutoModelForCausalLM):
        with pytest.raises(ValueError, match=said.replace("(", r"\(").replace(")", r"\)")):
            reads.from_pretrained(folder)


def test_a_folder_is_no_model_with_a_config_from_elsewhere_either(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base: Any = zoo.build("llama")
    report: list[str] = []
    monkeypatch.setattr(transformers.modeling_utils.logger, "warning", report.append)
    for reads in (type(base), AutoModelForCausalLM):
        with pytest.raises(RuntimeError, match="raising an error"):
            reads.from_pretrained(folder, config=base.config)
    assert all("take peft_compiler.load(base, folder)" in text for text in report)


def test_the_class_of_a_compiled_model_reads_plain_models(tmp_path: Path) -> None:
    base = zoo.build("llama")
    base.save_pretrained(tmp_path / "base")
    read = type(pc.compile(base, SPEC)).from_pretrained(tmp_path / "base")
    assert type(read) is type(base)
    assert same(read, base.state_dict())


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, folder: Path) -> None:
    base = zoo.build("llama")
    tuned = pc.compile(base, SPEC)
    base.save_pretrained(tmp_path / "base")
    pc.save(tuned, tmp_path / "saved")
    said = {
        "base": "it holds another model (config.json, model.safetensors), which would be lost",
        "saved": "it holds what save() wrote (adapter.safetensors), which would no longer be told apart",
    }
    for name, reason in said.items():
        before = {file: file.read_bytes() for file in (tmp_path / name).iterdir()}
        with pytest.raises(pc.InterchangeError) as caught:
            tuned.save_pretrained(tmp_path / name)
        assert (
            str(caught.value)
            == f"{tmp_path / name}: the checkpoint cannot be saved\n  {reason}: choose another"
        )
        assert {file: file.read_bytes() for file in (tmp_path / name).iterdir()} == before
    with pytest.raises(pc.InterchangeError, match="it holds other files"):
        pc.save(tuned, folder)


def test_what_is_asked_for_is_done_or_refused(tmp_path: Path) -> None:
    tuned = pc.compile(zoo.build("llama"), SPEC)
    with pytest.raises(pc.InterchangeError) as caught:
        tuned.save_pretrained(tmp_path, safe_serialization=False, push_to_hub=True, variant="fp16")
    assert caught.value.problems == (
        "safe_serialization=False is given: insertions are never pickled; leave it out",
        "push_to_hub=True is given, which is not done for a compiled model: leave it out",
        "variant='fp16' is given, which is not done for a compiled model: leave it out",
    )
    tuned.save_pretrained(tmp_path / "other", is_main_process=False)
    assert not (tmp_path / "other").exists()


def test_two_halves_of_two_checkpoints_are_no_checkpoint(folder: Path, tmp_path: Path) -> None:
    pc.compile(zoo.build("llama"), f"{SPEC.replace('r=2', 'r=2 alpha=3')}").save_pretrained(
        tmp_path / "other"
    )
    shutil.copy(tmp_path / "other" / "model.safetensors", folder)
    with pytest.raises(pc.InterchangeError, match="were not written together"):
        pc.load(zoo.build("llama"), folder)
