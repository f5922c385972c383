"""A cache holds the positions of a prompt, and tells nobody but the tower."""

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, StaticCache

from peft_compiler.compiling import compile
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


def test_masks_by_the_kind_of_layer_may_be_none() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "head_dim": 8}
    config = Qwen3Config(vocab_size=99, num_hidden_layers=2, num_key_value_heads=2, **sizes)
    tuned = compile(Qwen3ForCausalLM(config).eval(), "prompt length=3")
    ids = zoo.inputs("llama")["input_ids"]
    settings = {"max_new_tokens": 6, "eos_token_id": None, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        grows, fixed = (
            tuned.generate(
                ids, **settings, cache_implementation=kind, output_logits=True, return_dict_in_generate=True
            )
            for kind in ("dynamic", "static")
        )
    torch.testing.assert_close(fixed.logits, grows.logits)


NONE, THREE, FIVE = "lora", "prompt length=3", "prompt length=5"
TWO = "prompt length=3; p-tuning length=1 encoder=mlp"


@pytest.mark.parametrize(
    ("filled_by", "given_to", "says"),
    [
        (NONE, THREE, "a cache was filled without the positions of a prompt, where this model has 3"),
        (THREE, NONE, "a cache was filled with 3 positions of a prompt, where this model has none"),
        (THREE, FIVE, "a cache was filled with 3 positions of a prompt, where this model has 5"),
        (FIVE, THREE, "a cache was filled with 5 positions of a prompt, where this model has 3"),
        (TWO, THREE, "a cache was filled with 4 positions of a prompt, where this model has 3"),
        (THREE, TWO, "a cache was filled with 3 positions of a prompt, where this model has 4"),
    ],
)
@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_a_cache_of_another_prompt_is_refused_and_left_as_it_was(
    name: str, filled_by: str, given_to: str, says: str
) -> None:
    ids = zoo.inputs(name)["input_ids"]
    filler, other = (compile(zoo.build(name), spec) for spec in (filled_by, given_to))
    with torch.no_grad():
        expected = filler(input_ids=ids).logits[:, -1:]
        cache = filler(input_ids=ids[:, :-1], use_cache=True).past_key_values
        with pytest.raises(LoweringError) as error:
            other(input_ids=ids[:, -1:], past_key_values=cache)
        found = filler(input_ids=ids[:, -1:], past_key_values=cache).logits
    hint = "; go on with the model that filled it, or start with an empty one"
    assert str(error.value) == says + hint
    torch.testing.assert_close(found, expected)


def test_a_fixed_cache_that_was_allocated_is_refused() -> None:
    _, tuned, _ = prompted("llama")
    cache = StaticCache(config=tuned.config, max_cache_len=9)
    cache.early_initialization(2, 2, 8, torch.float32, torch.device("cpu"))
    with pytest.raises(LoweringError, match="was allocated without room for the 3 positions of the prompt"):
        tuned(input_ids=zoo.inputs("llama")["input_ids"], past_key_values=cache)
