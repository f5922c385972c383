"""An ensemble answers as its prompts do together, each run by itself."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peft_compiler as pc
from peft_compiler.lowering.ensembles import joined, repeated
from tests import zoo
from tests.test_compiling import main_output, stir

MEMBERS = 4
MODELS = ["gpt2", "llama", "bert", "distilbert", "t5", "bart", "handmade"]


def learning(model: nn.Module) -> nn.Parameter:
    (parameter,) = (p for p in model.parameters() if p.requires_grad)
    return parameter


def ensemble(name: str, settings: str = "") -> tuple[nn.Module, list[nn.Module]]:
    """Returns an ensemble, and a model for each of its prompts."""
    base = zoo.build(name)
    together = pc.compile(base, f"prompt length=3 ensemble={MEMBERS} {settings}")
    stir(together)
    alone = [pc.compile(base, "prompt length=3") for _ in range(MEMBERS)]
    with torch.no_grad():
        for model, prompt in zip(alone, learning(together), strict=True):
            learning(model).copy_(prompt)
    return together, alone


def answers(models: list[nn.Module], inputs: dict[str, Any]) -> Tensor:
    return torch.stack([main_output(model(**inputs)) for model in models])


@pytest.mark.parametrize("name", MODELS)
def test_its_logits_are_the_mean_of_its_members(name: str) -> None:
    together, alone = ensemble(name)
    inputs = zoo.inputs(name)
    with torch.no_grad():
        found, expected = main_output(together(**inputs)), answers(alone, inputs).mean(0)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_majority_decides_and_ties_go_to_the_likelier(name: str) -> None:
    together, alone = ensemble(name, "answer=majority")
    inputs = zoo.inputs(name)
    with torch.no_grad():
        found, each = main_output(together(**inputs)), answers(alone, inputs)
    votes = nn.functional.one_hot(each.argmax(-1), each.shape[-1]).sum(0)
    torch.testing.assert_close(found, votes + each.softmax(-1).mean(0), atol=1e-5, rtol=1e-5)


def test_every_member_is_trained_as_if_alone() -> None:
    together, alone = ensemble("llama")
    inputs = zoo.inputs("llama")
    loss = together(**inputs, labels=inputs["input_ids"]).loss
    losses = [model(**inputs, labels=inputs["input_ids"]).loss for model in alone]
    torch.testing.assert_close(loss, torch.stack(losses).mean())
    loss.backward()
    torch.stack(losses).sum().backward()
    gradient = learning(together).grad
    assert gradient is not None
    for mine, model in zip(gradient, alone, strict=True):
        # The loss of the batch is the mean of theirs.
        torch.testing.assert_close(mine * MEMBERS, learning(model).grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_generating_takes_the_mean_at_every_step(name: str) -> None:
    together, alone = ensemble(name)
    inputs = zoo.inputs(name)
    started = inputs.pop("decoder_input_ids", None)
    with torch.no_grad():
        found = together.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=None)
        if started is None:
            mask = torch.cat([inputs["attention_mask"], torch.ones(2, 3, dtype=torch.long)], 1)
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            step = {"input_ids": found[:, :-1], "attention_mask": mask, "position_ids": positions}
        else:
            step = {**inputs, "decoder_input_ids": found[:, :-1]}
        expected = answers(alone, step).mean(0)[:, -4:].argmax(-1)
    assert torch.equal(found[:, -4:], expected)


STEPS = 4


def scores_of(models: list[nn.Module], name: str, found: Tensor, rows: Tensor) -> Tensor:
    """The log probabilities of the steps that `found` took, by the mean of what its members answer alone."""
    inputs = {key: value[rows] for key, value in zoo.inputs(name).items() if key != "decoder_input_ids"}
    if name in zoo.SEQ2SEQ:
        step = {**inputs, "decoder_input_ids": found[:, :-1]}
    else:
        mask = torch.cat([inputs["attention_mask"], torch.ones(len(rows), STEPS - 1, dtype=torch.long)], 1)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        step = {"input_ids": found[:, :-1], "attention_mask": mask, "position_ids": positions}
    return answers(models, step).mean(0)[:, -STEPS:].log_softmax(-1)


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bart"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_beam_search_scores_by_the_mean_of_the_members(name: str, use_cache: bool) -> None:
    together, alone = ensemble(name)
    inputs = {key: value for key, value in zoo.inputs(name).items() if key != "decoder_input_ids"}
    settings = {"num_beams": 3, "num_return_sequences": 2, "do_sample": False, "length_penalty": 0.0}
    with torch.no_grad():
        found = together.generate(
            **inputs,
            **settings,
            max_new_tokens=STEPS,
            min_new_tokens=STEPS,
            forced_eos_token_id=None,
            use_cache=use_cache,
            return_dict_in_generate=True,
            output_scores=True,
        )
        scores = scores_of(alone, name, found.sequences, torch.arange(2).repeat_interleave(2))
    # Until the last step the end is not allowed; what is left of the probabilities is not spread again.
    taken = scores.gather(-1, found.sequences[:, -STEPS:, None]).squeeze(-1).sum(-1)
    torch.testing.assert_close(found.sequences_scores, taken, atol=1e-4, rtol=1e-4)
    assert (found.sequences_scores[::2] >= found.sequences_scores[1::2]).all()


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_sampling_draws_from_the_mean_of_the_members(name: str) -> None:
    together, alone = ensemble(name)
    inputs = {key: value for key, value in zoo.inputs(name).items() if key != "decoder_input_ids"}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = together.generate(
            **inputs,
            do_sample=True,
            top_k=0,
            num_return_sequences=3,
            max_new_tokens=STEPS,
            eos_token_id=None,
            return_dict_in_generate=True,
            output_logits=True,
        )
        scores = scores_of(alone, name, found.sequences, torch.arange(2).repeat_interleave(3))
    drawn_from = torch.stack(found.logits, 1).log_softmax(-1)
    torch.testing.assert_close(drawn_from, scores, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_a_majority_decides_each_step_of_generating(name: str) -> None:
    together, alone = ensemble(name, "answer=majority")
    inputs = {key: value for key, value in zoo.inputs(name).items() if key != "decoder_input_ids"}
    with torch.no_grad():
        found = together.generate(**inputs, max_new_tokens=1, do_sample=False, eos_token_id=None)
        start = {"decoder_input_ids": found[:, :-1]} if name in zoo.SEQ2SEQ else {}
        mask = inputs["attention_mask"]
        positions = {} if start else {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
        each = answers(alone, {**inputs, **start, **positions})[:, :, -1]
    votes = nn.functional.one_hot(each.argmax(-1), each.shape[-1]).sum(0)
    assert torch.equal(found[:, -1], (votes + each.softmax(-1).mean(0)).argmax(-1))


@pytest.mark.parametrize("name", MODELS)
def test_every_promise_is_kept(name: str) -> None:
    report = pc.verify(ensemble(name)[0])
    assert report.ok, str(report)


def test_rows_are_repeated_once_and_what_has_others_stays() -> None:
    arguments = {"input_ids": torch.tensor([[1], [2]]), "states": torch.zeros(4, 1), "flag": True}
    longer = repeated(arguments, 2, "input_ids")
    assert longer["input_ids"].tolist() == [[1], [1], [2], [2]]
    assert longer["states"] is arguments["states"]
    assert longer["flag"] is True
    assert repeated(longer, 2, "input_ids") is longer
    assert joined((torch.tensor([[1.0], [3.0], [5.0], [5.0]]),), longer, 2, "mean")[0].tolist() == [[2], [5]]
