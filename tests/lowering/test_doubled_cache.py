"""A cache of both runs: decoding in steps is decoding at once, and whoever changes it changes both halves."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, StaticCache

import peft_compiler as pc
from tests import zoo
from tests.lowering.mixtures import SPEC, mixed
from tests.test_compiling import CACHED, by_cache

IDS = zoo.inputs("llama", 3, 9)["input_ids"]


def filled(tuned: nn.Module, length: int = 6, ids: Tensor = IDS, **kwargs: Any) -> DynamicCache:
    """Returns a cache that holds the first `length` tokens."""
    return tuned(ids[:, :length], use_cache=True, **kwargs).past_key_values


@pytest.fixture
def tuned() -> nn.Module:
    return mixed("llama")[1].requires_grad_(False)


def test_it_holds_the_layers_of_both_runs(tuned: nn.Module) -> None:
    cache = filled(tuned)
    assert len(cache.layers) == 2 * zoo.LAYERS
    assert cache.get_seq_length() == 6
    assert {layer.get_seq_length() for layer in cache.layers} == {6}
    own, first = cache.layers[1].values, cache.layers[1 + zoo.LAYERS].values
    assert not torch.equal(own, first)


def test_beams_are_followed_in_both_halves(tuned: nn.Module) -> None:
    order = torch.tensor([2, 0, 0])
    cache = filled(tuned)
    cache.reorder_cache(order)
    found = tuned(IDS[:, 6:], past_key_values=cache).logits
    ids = torch.cat([IDS[order, :6], IDS[:, 6:]], 1)
    torch.testing.assert_close(found, tuned(ids).logits[:, 6:])


def test_rows_are_repeated_and_chosen_in_both_halves(tuned: nn.Module) -> None:
    cache = filled(tuned)
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0, 3, 5]))
    found = tuned(IDS[:, 6:], past_key_values=cache).logits
    torch.testing.assert_close(found, tuned(IDS).logits[:, 6:])


def test_tokens_are_taken_back_from_both_halves(tuned: nn.Module) -> None:
    cache = filled(tuned, ids=IDS.flip(1), length=8)
    cache.crop(-5)
    ids = torch.cat([IDS.flip(1)[:, :3], IDS[:, 3:]], 1)
    found = tuned(ids[:, 3:], past_key_values=cache).logits
    torch.testing.assert_close(found, tuned(ids).logits[:, 3:])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
def test_a_copy_of_it_goes_on_by_itself(tuned: nn.Module, copied: Any) -> None:
    cache = filled(tuned)
    other = copied(cache)
    expected = tuned(IDS).logits[:, 6:]
    for each in (cache, other):
        torch.testing.assert_close(tuned(IDS[:, 6:], past_key_values=each).logits, expected)


def test_an_empty_one_of_the_caller_is_filled(tuned: nn.Module) -> None:
    for cache in (DynamicCache(), DynamicCache(config=tuned.config)):
        filled(tuned, past_key_values=cache)
        assert len(cache.layers) == 2 * zoo.LAYERS
        found = tuned(IDS[:, 6:], past_key_values=cache).logits
        torch.testing.assert_close(found, tuned(IDS).logits[:, 6:])


def test_one_of_a_fixed_size_is_used_again_once_it_was_reset(tuned: nn.Module) -> None:
    cache = StaticCache(config=tuned.config, max_cache_len=9)
    first = tuned(IDS, past_key_values=cache).logits
    torch.testing.assert_close(first, tuned(IDS).logits)
    cache.reset()
    assert torch.equal(tuned(IDS, past_key_values=cache).logits, first)


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=str)
@pytest.mark.parametrize("name", ["llama", "gemma3", "t5"])
def test_what_is_generated_by_cache_is_what_is_generated_without(name: str, settings: Any) -> None:
    _, tuned = mixed(name)
    inputs = zoo.inputs(name)
    inputs.pop("decoder_input_ids", None)
    common = {**inputs, "max_new_tokens": 5, "do_sample": False}
    with torch.no_grad():
        cached = tuned.generate(**common, **settings)
        plain = tuned.generate(**common, use_cache=False, num_beams=settings.get("num_beams", 1))
    assert torch.equal(cached, plain)


def test_one_that_the_base_filled_is_refused() -> None:
    base, tuned = mixed("llama")
    cache = filled(base)
    with pytest.raises(pc.LoweringError) as caught:
        tuned(IDS[:, 6:], past_key_values=cache)
    assert str(caught.value) == (
        "a cache was filled without the first of the two runs that a mixture of LoRAs takes; "
        "start with an empty one"
    )


def test_a_call_that_fails_leaves_both_halves(tuned: nn.Module) -> None:
    cache = filled(tuned)

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = tuned.model.layers[0].register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        tuned(IDS[:, 6:], past_key_values=cache)
    handle.remove()
    found = tuned(IDS[:, 6:], past_key_values=cache).logits
    torch.testing.assert_close(found, tuned(IDS).logits[:, 6:])


@pytest.mark.parametrize("name", CACHED)
def test_every_decoder_decodes_in_steps(name: str) -> None:
    prompted = "" if name == "whisper" else "; prompt length=2"  # where no tokens enter first, none stand
    _, tuned = mixed(name, f"{SPEC}{prompted}")
    with torch.no_grad():
        whole, steps = by_cache(tuned, name, zoo.inputs(name))
    torch.testing.assert_close(steps, whole, atol=1e-5, rtol=1e-5)


def test_a_state_space_model_decodes_in_steps() -> None:
    _, tuned = mixed("mamba", "x-lora r=2 scaling_pass=0.5 on mixer")
    ids = zoo.inputs("mamba")["input_ids"]
    with torch.no_grad():
        whole = tuned(ids).logits
        first = tuned(ids[:, :4], use_cache=True)
        second = tuned(ids[:, 4:5], cache_params=first.cache_params, use_cache=True)
    torch.testing.assert_close(second.logits[:, 0], whole[:, 4], atol=1e-5, rtol=1e-5)
