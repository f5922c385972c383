"""TRL trains a compiled model as any other, with its own base as the reference, and leaves it what it was."""

import copy
from pathlib import Path

import pytest
import torch

import peft_compiler as pc
from peft_compiler.plan import is_inserted
from tests import zoo
from tests.citizen.language import fine_tuning, preferring
from tests.citizen.learning import losses, same, values
from tests.test_compiling import main_output

# TRL checkpoints activations by default, under the name that transformers had for it before.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
SPEC = "LoRA r=2 on q,v; adapters width=4 after FFN"
SPECS = [SPEC, "prompt length=3", "prefix length=3 width=4", f"{SPEC}; deep prompts length=3 scale=0.1"]


@pytest.mark.parametrize("spec", SPECS)
def test_fine_tuning_lowers_the_loss_and_keeps_every_promise(spec: str, tmp_path: Path) -> None:
    base = zoo.build("llama")
    before, tuned = values(base), pc.compile(base, spec)
    run = fine_tuning(tuned, tmp_path)
    run.train()
    assert losses(run)[-1] < losses(run)[0]
    assert same(base, before)
    assert pc.verify(tuned).ok


@pytest.mark.parametrize("spec", [SPEC, SPECS[1]])
def test_preferences_are_learnt_with_the_base_as_reference(spec: str, tmp_path: Path) -> None:
    base = zoo.build("llama")
    before, tuned = values(base), pc.compile(base, spec)
    run = preferring(tuned, pc.reference_of(tuned), tmp_path)
    run.train()
    if spec == SPEC:  # an identity at first: model and reference agree, and the loss is log 2
        assert losses(run)[0] == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-4)
    assert losses(run)[-1] < losses(run)[0]
    assert same(base, before)
    assert pc.verify(tuned).ok


def test_the_reference_is_the_base_without_memory_of_its_own() -> None:
    base = zoo.build("llama")
    tuned = pc.compile(base, "train head; LoRA on q")
    reference = pc.reference_of(tuned)
    ours = {name: parameter for name, parameter in tuned.named_parameters() if not is_inserted(name)}
    theirs = dict(reference.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(ours[name] is theirs[name] for name in ours)
    assert type(reference) is type(base)
    assert torch.equal(
        main_output(reference(**zoo.inputs("llama"))), main_output(base(**zoo.inputs("llama")))
    )
    tuned.to(torch.float64)  # it moves along
    assert {parameter.dtype for parameter in reference.parameters()} == {torch.float64}
    with pytest.raises(pc.PeftCompilerError, match="a LlamaForCausalLM that was not compiled was given"):
        pc.reference_of(base)


def test_a_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    base = zoo.build("llama")
    whole, half = pc.compile(base, SPEC), pc.compile(base, SPEC)
    keeping = {"save_strategy": "steps", "save_steps": 3}
    uninterrupted = fine_tuning(whole, tmp_path / "whole", **keeping)
    uninterrupted.train()
    resumed = fine_tuning(half, tmp_path / "half", **keeping)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert losses(resumed) == losses(uninterrupted)
    assert same(half, whole.state_dict())
    assert same(pc.load(base, tmp_path / "half" / "checkpoint-5"), whole.state_dict())


def test_what_a_trainer_puts_in_the_place_of_a_forward_stays_with_its_model(tmp_path: Path) -> None:
    base = zoo.build("llama")
    tuned = pc.compile(base, "LoRA r=2 on q,v")
    run = fine_tuning(tuned, tmp_path)
    run.train()
    assert "forward" in vars(tuned), "TRL puts none on the model any more: this test is for nothing"
    inputs = zoo.inputs("llama")
    learnt, plain = main_output(tuned.eval()(**inputs)), main_output(base(**inputs))
    merged, copied, reference = pc.merge(tuned), copy.deepcopy(tuned), pc.reference_of(tuned)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if is_inserted(name):
                parameter.zero_()
    assert torch.equal(main_output(tuned(**inputs)), plain)
    torch.testing.assert_close(main_output(merged(**inputs)), learnt)
    assert torch.equal(main_output(copied(**inputs)), learnt)
    assert torch.equal(main_output(reference(**inputs)), plain)


def test_a_base_that_served_as_reference_is_compiled_again(tmp_path: Path) -> None:
    base = zoo.build("llama")
    preferring(pc.compile(base, SPEC), base, tmp_path).train()
    assert "forward" in vars(base), "TRL puts none on the reference any more: this test is for nothing"
    again = pc.compile(base, "prompt length=3; LoRA on q")
    assert pc.verify(again).ok
