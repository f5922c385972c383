"""Generation: whatever way of decoding, the tokens are those of the model without a cache."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import QuantizedCache

from benchmarks.citizen.cell import Case, Feature, NotApplicableError
from peft_compiler.verifying.incremental import incremental_outputs
from tests import zoo

CACHED = tuple(name for name in (*zoo.CAUSAL, *zoo.SEQ2SEQ))
"""Eighteen decoders and encoder-decoders: grouped, fused, ALiBi, rotary, sliding, experts, state-space."""
DECODERS = ("llama", "gpt2", "bloom", "mistral", "gemma3")
VARIED = ("llama", "gpt2", "bloom", "t5", "bart", "whisper")
NEW = 6
"""Tokens to generate; more than the sliding window of those that have one, with the example."""


def incremental(case: Case) -> None:
    """Logits of one token after another equal those of the whole, padded rows too."""
    inputs = zoo.inputs(case.architecture)
    outputs = incremental_outputs(case.decoding(), inputs)
    if outputs is None:
        raise NotApplicableError("its forward takes no cache")
    steps, whole = outputs
    # What a masked row gives for its own padding means nothing, and differs in the base too.
    seen = _seen(case, inputs)
    assert_close(steps[0][seen], whole[0][seen], atol=1e-5, rtol=1e-5)


def _seen(case: Case, inputs: dict[str, Any]) -> Tensor:
    if case.architecture in zoo.SEQ2SEQ:
        return torch.ones_like(inputs["decoder_input_ids"]).bool()
    return inputs["attention_mask"].bool()


def greedy(case: Case) -> None:
    """Greedy search with a cache gives the tokens that it gives without."""
    _equal_without_cache(case)


def beams(case: Case) -> None:
    """Beam search reorders caches as it reorders beams."""
    _equal_without_cache(case, num_beams=3)


def sampling(case: Case) -> None:
    """The same seed samples the same tokens with a cache and without."""
    _equal_without_cache(case, do_sample=True, top_k=20, temperature=2.0)


def static_cache(case: Case) -> None:
    """A cache of fixed size gives the tokens of one that grows."""
    tuned = case.decoding()
    for prompt in _prompts(case):
        expected = _generated(tuned, prompt)
        assert_close(_generated(tuned, prompt, cache_implementation="static"), expected)


def quantised_cache(case: Case) -> None:
    """With a cache of 4 bits, what reads no cache is exact, and what does is near."""
    tuned, prompt = case.decoding(), _prompt(case)
    wanted = {"return_dict_in_generate": True, "output_logits": True}
    exact = torch.stack(_generated(tuned, prompt, **wanted).logits)
    cache = QuantizedCache(backend="quanto", config=tuned.config, nbits=4, q_group_size=16)
    found = torch.stack(_generated(tuned, prompt, past_key_values=cache, **wanted).logits)
    assert_close(found[0], exact[0])
    # The second is the last that both have for the same tokens, whatever is sampled from it.
    assert not torch.equal(found[1], exact[1]), "nothing was quantised"
    assert (found[1] - exact[1]).norm() < 0.25 * exact[1].norm()


def assisted(case: Case) -> None:
    """The base drafts for the tuned model: the tokens are those of greedy search."""
    tuned, prompt = case.decoding(), _prompt(case)
    prompt = {key: value[1:] for key, value in prompt.items()}  # transformers assists one row at a time
    expected = _generated(tuned, prompt)
    assert_close(_generated(tuned, prompt, assistant_model=case.base()), expected)


def left_padding(case: Case) -> None:
    """A row padded on the left, beside a longer one, continues as it does alone."""
    tuned, prompt = case.decoding(), _prompt(case)
    together = _generated(tuned, prompt)[:1, -NEW:]
    kept = prompt["attention_mask"][0].bool()
    alone = {key: value[:1, kept] for key, value in prompt.items()}
    assert_close(together, _generated(tuned, alone)[:, -NEW:])


def embedded(case: Case) -> None:
    """Embeddings in place of tokens continue as the tokens do."""
    tuned, prompt = case.decoding(), _prompt(case)
    if case.architecture in zoo.SEQ2SEQ:
        raise NotApplicableError("generates from a decoder's own tokens")
    expected = _generated(tuned, prompt)[:, prompt["input_ids"].shape[1] :]
    with torch.no_grad():
        embeddings = tuned.get_input_embeddings()(prompt["input_ids"])
    mask = prompt["attention_mask"]
    found = tuned.generate(inputs_embeds=embeddings, attention_mask=mask, **_settings(tuned))
    assert_close(found, expected)


def continued(case: Case) -> None:
    """A conversation goes on from the cache that the last turn returned."""
    tuned, prompt = case.decoding(), _prompt(case)
    first = tuned.generate(**prompt, **_settings(tuned), return_dict_in_generate=True)
    reply = torch.full((len(first.sequences), 2), 7)
    tokens = torch.cat([first.sequences, reply], 1)
    mask = torch.cat([prompt["attention_mask"], torch.ones(len(tokens), NEW + 2, dtype=torch.long)], 1)
    turn = {"input_ids": tokens, "attention_mask": mask}
    expected = _generated(tuned, turn)
    assert_close(_generated(tuned, turn, past_key_values=first.past_key_values), expected)


def _equal_without_cache(case: Case, **settings: Any) -> None:
    tuned = case.decoding()
    for prompt in _prompts(case):
        expected = _generated(tuned, prompt, use_cache=False, **settings)
        assert_close(_generated(tuned, prompt, use_cache=True, **settings), expected)


def _generated(tuned: Any, prompt: dict[str, Tensor], **settings: Any) -> Any:
    with _same_draws():
        return tuned.generate(**prompt, **_settings(tuned), **settings)


def _settings(tuned: Any) -> dict[str, Any]:
    # No token ends the sequence, so that every row has all its steps.
    tuned.generation_config.eos_token_id = None
    tuned.generation_config.forced_eos_token_id = None
    return {"max_new_tokens": NEW, "min_new_tokens": NEW}


@contextmanager
def _same_draws() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _prompt(case: Case) -> dict[str, Tensor]:
    inputs = zoo.inputs(case.architecture)
    inputs.pop("decoder_input_ids", None)
    return inputs


def _prompts(case: Case) -> tuple[dict[str, Tensor], ...]:
    """Returns rows of which one is padded, and rows without padding, which transformers gives no mask."""
    padded = _prompt(case)
    whole = {key: torch.ones_like(value) if "mask" in key else value for key, value in padded.items()}
    return padded, whole


FEATURES = (
    Feature("incremental = full", incremental, CACHED),
    Feature("greedy", greedy, CACHED),
    Feature("beam search", beams, VARIED),
    Feature("sampling", sampling, VARIED),
    Feature("assisted", assisted, ("llama", "gpt2", "bloom")),
    Feature("left padding", left_padding, DECODERS),
    Feature("static cache", static_cache, ("llama", "gpt2", "mistral", "gemma3", "t5", "bart")),
    Feature("quantised cache", quantised_cache, ("llama", "gpt2")),
    Feature("inputs_embeds", embedded, DECODERS),
    Feature("continued cache", continued, DECODERS),
)
