"""A cache holds the positions of a prompt, and tells nobody but the tower."""

import pytest
import torch
from transformers import StaticCache

from peft_compiler.errors import LoweringError
from tests import zoo
from tests.lowering.test_extend_input import prompted


def test_beams_keep_their_prompt() -> None:
    _, tuned, _ = prompted("llama")
    inputs = zoo.inputs("llama")
    settings = {"max_new_tokens": 4, "num_beams": 3, "do_sample": False}
    with torch.no_grad():
        cached, plain = (tuned.generate(**inputs, use_cache=use, **settings) for use in (True, False))
    assert torch.equal(cached, plain)


def test_a_fixed_cache_is_used_again_once_it_was_reset() -> None:
    _, tuned, _ = prompted("llama")
    ids = zoo.inputs("llama")["input_ids"]
    cache = StaticCache(config=tuned.config, max_cache_len=ids.shape[1])
    with torch.no_grad():
        first = tuned(input_ids=ids, past_key_values=cache).logits
        assert int(cache.get_seq_length()) == cache.get_max_length() == ids.shape[1]
        cache.reset()
        assert int(cache.get_seq_length()) == 0
        assert torch.equal(tuned(input_ids=ids, past_key_values=cache).logits, first)


def test_a_cache_of_the_base_is_refused() -> None:
    base, tuned, _ = prompted("llama")
    ids = zoo.inputs("llama")["input_ids"]
    cache = base(input_ids=ids, use_cache=True).past_key_values
    with pytest.raises(
        LoweringError,
        match="a cache was filled without the 3 positions of the prompt; start with an empty one",
    ):
        tuned(input_ids=ids, past_key_values=cache)


def test_a_fixed_cache_that_was_allocated_is_refused() -> None:
    _, tuned, _ = prompted("llama")
    cache = StaticCache(config=tuned.config, max_cache_len=9)
    cache.early_initialization(2, 2, 8, torch.float32, torch.device("cpu"))
    with pytest.raises(LoweringError, match="was allocated without room for the 3 positions of the prompt"):
        tuned(input_ids=zoo.inputs("llama")["input_ids"], past_key_values=cache)
