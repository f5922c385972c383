"""What a model shows of its encoder is as long as what was given; the decoder still reads the prompts."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peft_compiler as pc
from tests import zoo

SPECS = {
    "prompt": "prompt length=3",
    "p_tuning": "p-tuning length=3 encoder=mlp",
    "two": "prompt length=2; p-tuning length=1 encoder=mlp",
    "ensemble": "prompt length=3 ensemble=2",
}
SHOWN = ("encoder_last_hidden_state", "encoder_hidden_states", "encoder_attentions", "cross_attentions")


def compiled(name: str, spec: str) -> tuple[nn.Module, Any]:
    base = zoo.build(name, attention="eager")
    return base, pc.compile(base, SPECS[spec]).eval()


def given(name: str) -> dict[str, Any]:
    return {**zoo.inputs(name), "output_hidden_states": True, "output_attentions": True}


def shapes(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else [shapes(each) for each in value]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", ["t5", "bart"])
@torch.no_grad()
def test_what_is_shown_is_as_long_as_what_was_given(name: str, spec: str) -> None:
    base, tuned = compiled(name, spec)
    found, expected = tuned(**given(name)), base(**given(name))
    assert {key: shapes(found[key]) for key in SHOWN} == {key: shapes(expected[key]) for key in SHOWN}
    as_tuple = tuned(**given(name), return_dict=False)
    assert type(as_tuple) is tuple
    by_name = [value for key, value in found.items() if key != "past_key_values"]
    torch.testing.assert_close([each for each in as_tuple if not hasattr(each, "is_updated")], by_name)


@pytest.mark.parametrize("name", ["t5", "bart"])
@torch.no_grad()
def test_what_is_shown_are_the_states_of_the_users_tokens(name: str) -> None:
    _, tuned = compiled(name, "prompt")
    inputs = given(name)
    found = tuned(**inputs)
    states = tuned.get_encoder()(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])[0]
    assert states.shape[1] == inputs["input_ids"].shape[1] + 3  # to be handed on
    assert torch.equal(found.encoder_last_hidden_state, states[:, 3:])
    # What the queries give to prompts is no longer shown, so that less than all is.
    assert all((each.sum(-1) < 0.999).any() for each in found.cross_attentions)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", ["t5", "bart"])
@torch.no_grad()
def test_states_that_are_handed_on_compute_the_same(name: str, spec: str) -> None:
    base, tuned = compiled(name, spec)
    inputs = zoo.inputs(name)
    whole = tuned(**inputs)
    tokens = {key: inputs.pop(key) for key in ("input_ids",)}
    by_itself = tuned.get_encoder()(**tokens, attention_mask=inputs["attention_mask"])
    for states in (by_itself, (by_itself[0],), (whole.encoder_last_hidden_state,)):
        again = tuned(**inputs, encoder_outputs=states)
        torch.testing.assert_close(again.logits, whole.logits)
        assert again.encoder_last_hidden_state.shape == whole.encoder_last_hidden_state.shape
    assert not torch.allclose(base(**tokens, **inputs).logits, whole.logits, atol=1e-3)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", ["t5", "bart"])
@torch.no_grad()
def test_generation_reads_the_prompts_and_shows_none(name: str, spec: str) -> None:
    base, tuned = compiled(name, spec)
    inputs = {key: zoo.inputs(name)[key] for key in ("input_ids", "attention_mask")}
    settings: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    detailed = {"return_dict_in_generate": True, "output_attentions": True, "output_hidden_states": True}
    found = tuned.generate(**inputs, **settings, **detailed, output_logits=True)
    plain = base.generate(**inputs, **settings, **detailed)  # pyright: ignore
    for key in ("encoder_attentions", "cross_attentions"):
        widths = [[each[-1] for each in flat(shapes(out[key]))] for out in (found, plain)]
        assert widths[0] == widths[1]
    full = tuned(**inputs, decoder_input_ids=found.sequences[:, :-1])
    torch.testing.assert_close(torch.stack(found.logits, 1), full.logits, atol=1e-5, rtol=1e-4)
    beams = tuned.generate(**inputs, **settings, num_beams=2)
    uncached = tuned.generate(**inputs, **settings, num_beams=2, use_cache=False)
    assert torch.equal(beams, uncached)


def flat(nested: Any) -> list[Any]:
    if isinstance(nested, tuple):
        return [nested]
    return [each for part in nested for each in flat(part)]
