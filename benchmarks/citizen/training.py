"""Training: by every trainer, in lower precision, saving memory, and interrupted."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.testing import assert_close

import peft_compiler as pc
from benchmarks.citizen.cell import Case, Feature
from peft_compiler.plan import is_inserted
from tests.citizen.language import fine_tuning, preferring
from tests.citizen.learning import batch, losses, same, trainable, trainer, values

ARCHITECTURES = ("llama", "gpt2", "t5", "bart", "bert")
LANGUAGE = ("llama", "gpt2", "bloom")
KEPT: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}


def resumed(case: Case) -> None:
    """A Trainer that was interrupted ends, bit for bit, where an uninterrupted one does."""
    _resumes(case, lambda tuned, folder: trainer(tuned, case.architecture, folder, **KEPT))


def resumed_by_trl(case: Case) -> None:
    """An SFTTrainer that was interrupted ends, bit for bit, where an uninterrupted one does."""
    _resumes(case, lambda tuned, folder: fine_tuning(tuned, folder, **KEPT))


def _resumes(case: Case, run: Callable[[Any, Path], Any]) -> None:
    whole, half = case.untrained(), case.untrained()
    with tempfile.TemporaryDirectory() as name:
        uninterrupted, interrupted = run(whole, Path(name, "whole")), run(half, Path(name, "half"))
        before = values(whole)
        uninterrupted.train()
        interrupted.train(resume_from_checkpoint=str(Path(name, "whole", "checkpoint-3")))
        loaded = pc.load(case.base(), Path(name, "whole", "checkpoint-3"))
    assert losses(interrupted) == losses(uninterrupted)
    assert same(half, whole.state_dict())
    assert all(torch.equal(tensor, before[name]) for name, tensor in _base(loaded).items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in _base(half).items())
    assert not same(whole, before), "nothing was learnt"


def preferred(case: Case) -> None:
    """A DPOTrainer with the base as its reference lowers its loss, and leaves the base as it was."""
    tuned = case.untrained()
    before = values(tuned)
    with tempfile.TemporaryDirectory() as name:
        run = preferring(tuned, pc.reference_of(tuned), Path(name))
        run.train()
    assert min(losses(run)[1:]) < losses(run)[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in _base(tuned).items())


def bfloat16(case: Case) -> None:
    """Under autocast in bfloat16, losses differ by rounding alone."""
    assert_close(_loop(case, torch.bfloat16), _loop(case, None), atol=0.05, rtol=0.02)


def float16(case: Case) -> None:
    """Under autocast in float16, losses differ by rounding alone."""
    assert_close(_loop(case, torch.float16), _loop(case, None), atol=0.05, rtol=0.02)


def _loop(case: Case, dtype: torch.dtype | None) -> list[float]:
    tuned = case.untrained()  # in eval mode: what is dropped depends on the dtype
    optimiser = torch.optim.SGD(trainable(tuned), lr=0.02)
    found: list[float] = []
    for _ in range(3):
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = tuned(**batch(case.architecture)).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        found.append(loss.item())
    return found


def checkpointed(case: Case) -> None:
    """Without keeping activations the gradients are the same, reentrant or not."""
    expected = _gradients(case, None)
    for reentrant in (False, True):
        assert_close(_gradients(case, reentrant), expected)


def _gradients(case: Case, reentrant: bool | None) -> dict[str, torch.Tensor | None]:
    tuned = case.untrained().train()
    if reentrant is not None:
        tuned.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": reentrant})
        tuned.enable_input_require_grads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tuned(**batch(case.architecture)).loss.backward()
    return {name: each.grad for name, each in tuned.named_parameters() if each.grad is not None}


def foreign(case: Case) -> None:
    """A checkpoint of another spec is refused, and nothing is changed."""
    tuned, other = case.untrained(), pc.compile(case.base(), "ia3 on v")
    before = values(other)
    try:
        other.load_state_dict(pc.checkpoint(tuned), strict=False)
    except pc.InterchangeError:
        assert same(other, before)
    else:
        raise AssertionError("taken without a word")


def lengths(case: Case) -> None:
    """Logits, losses, states and attentions are as long as what was given."""
    tuned, base = case.untrained(), case.base()
    for model in (tuned, base):
        model.set_attn_implementation("eager")
    given = batch(case.architecture) | {"output_hidden_states": True, "output_attentions": True}
    found, expected = tuned(**given), base(**given)
    for name in expected.keys() - {"past_key_values"}:
        assert _shape(found[name]) == _shape(expected[name]), name


def _shape(value: Any) -> Any:
    return value.shape if isinstance(value, torch.Tensor) else [_shape(each) for each in value]


def _base(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if not is_inserted(name)}


FEATURES = (
    Feature("Trainer resumes", resumed, ARCHITECTURES),
    Feature("SFTTrainer resumes", resumed_by_trl, LANGUAGE),
    Feature("DPOTrainer", preferred, LANGUAGE),
    Feature("autocast bf16", bfloat16, ARCHITECTURES),
    Feature("autocast fp16", float16, ARCHITECTURES),
    Feature("gradient checkpointing", checkpointed, ARCHITECTURES),
    Feature("refuses another's checkpoint", foreign, ARCHITECTURES),
    Feature("lengths", lengths, ARCHITECTURES),
)
