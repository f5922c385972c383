"""What prompt tuning promises: how a prompt starts, how many parameters it has, what is refused."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

import peft_compiler as pc
from peft_compiler.errors import PlanError, SpecError
from peft_compiler.methods import Prompt
from peft_compiler.spec.read import read_spec
from peft_compiler.spec.schema import json_schema
from peft_compiler.spec.write import to_sentence
from peft_compiler.testing.places import examples
from tests import zoo

EXAMPLE = examples()["input"]
TABLE = EXAMPLE.host[0].weight.detach()


class Words:
    """Splits text at spaces; each word is as many as its length, and `-` is nothing."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [len(word) for word in text.split() if word != "-"]


def start_of(method: Prompt, seed: int = 0) -> Tensor:
    return method.build(EXAMPLE.site, EXAMPLE.host, torch.Generator().manual_seed(seed))().detach()


def test_positions_start_as_tokens_of_the_vocabulary() -> None:
    prompt = start_of(Prompt(length=50))
    rows = [next(i for i, row in enumerate(TABLE) if torch.equal(row, position)) for position in prompt]
    assert set(rows) == set(range(len(TABLE)))


def test_only_common_tokens_are_sampled() -> None:
    table = torch.nn.Embedding(6000, 1)
    table.weight.data = torch.arange(6000.0).unsqueeze(1)
    site = replace(EXAMPLE.site, width_in=6000, width_out=1)
    prompt = Prompt(length=2000).build(site, torch.nn.Sequential(table), torch.Generator().manual_seed(0))()
    assert 4900 < prompt.max() < 5000


def test_random_positions_are_uniform() -> None:
    prompt = start_of(Prompt(length=2000, init="random"))
    assert prompt.abs().max() <= 0.5
    assert prompt.std().item() == pytest.approx(12**-0.5, rel=0.02)


def test_a_text_starts_position_by_position_and_sets_the_length() -> None:
    method = Prompt(text="a bb ccc").tokenized(Words())
    assert method.tokens == ((1,), (2,), (3,))
    assert method.at(EXAMPLE.site).length == 3
    assert torch.equal(start_of(method), TABLE[[1, 2, 3]])


def test_a_label_starts_as_the_mean_of_its_tokens_and_the_rest_from_the_vocabulary() -> None:
    method = Prompt(length=4, labels=("bad", "very good")).tokenized(Words())
    prompt = start_of(method)
    torch.testing.assert_close(prompt[:2], torch.stack([TABLE[3], TABLE[[4, 4]].mean(0)]))
    assert all(any(torch.equal(row, position) for row in TABLE) for position in prompt[2:])


@pytest.mark.parametrize(
    ("method", "start"),
    [("prompt", {"text": "a bb"}), ("prompt", {"labels": ["bad", "good"]}), ("prefix", {"text": "a bb"})],
)
def test_a_file_may_say_the_words_as_its_start(method: str, start: dict[str, Any]) -> None:
    specs = [
        read_spec({"version": 1, "rules": [{"use": {method: settings}}]})
        for settings in (start, {"init": start})
    ]
    assert specs[0] == specs[1]
    shapes = json_schema()["$defs"][method.capitalize()]["properties"]["init"]
    words = shapes["anyOf"][-1] if "anyOf" in shapes else shapes
    assert set(start) <= set(words["properties"])


@pytest.mark.parametrize("start", [{"txet": "a"}, {"text": "a", "labels": ["b"]}, {}])
def test_another_start_is_refused(start: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        read_spec({"version": 1, "rules": [{"use": {"prompt": {"init": start}}}]})


def test_embeddings_are_taken_as_they_enter_the_model() -> None:
    """Gemma scales what it looks up."""
    table = Gemma3TextScaledWordEmbedding(8, 6, 0, embed_scale=3.0)
    method = Prompt(text="a").tokenized(Words())
    prompt = method.build(EXAMPLE.site, torch.nn.Sequential(table), torch.Generator())()
    torch.testing.assert_close(prompt, 3 * table.weight[[1]])


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"text": "a b"},
            "its text cannot be read without a tokenizer; pass one: compile(..., tokenizer=...)",
        ),
        (
            {"labels": ("-", "a"), "tokens": ((), (1,))},
            "the tokenizer splits the label '-' into nothing; choose another word",
        ),
        (
            {"labels": ("a",), "tokens": ((8,),)},
            "token 8 is beyond the 8 entries of the embedding; expected the tokenizer of this model",
        ),
        (
            {"length": 1, "labels": ("a", "b"), "tokens": ((1,), (1,))},
            "length=1 is too short for 2 labels; take more",
        ),
        (
            {"answer": "majority"},
            "answer=majority is that of an ensemble: write how many prompts it has, ensemble=5",
        ),
        ({"length": 64}, "length=64 leaves no room for tokens: the model has 64 positions"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, object], problem: str) -> None:
    assert list(Prompt.model_validate(settings).problems(EXAMPLE.site)) == [problem]


def test_two_beginnings_are_refused() -> None:
    with pytest.raises(SpecError, match="found both text and labels; expected one beginning of the prompt"):
        read_spec({"rules": [{"use": {"prompt": {"text": "a", "labels": ["b"]}}}]})


@pytest.mark.parametrize(
    "sentence",
    ["prompt tuning length=8", 'soft prompt text="classify this" in decoder', 'prompt labels=["a", "b"]'],
)
def test_it_reads_well_in_sentences(sentence: str) -> None:
    spec = read_spec(sentence)
    assert isinstance(spec.rules[0].use, Prompt)
    assert read_spec(to_sentence(spec)) == spec


def test_a_spec_with_texts_is_compiled_with_a_tokenizer_and_loaded_without(tmp_path: object) -> None:
    model = zoo.build("llama")
    with pytest.raises(PlanError, match="cannot be read without a tokenizer"):
        pc.compile(model, 'prompt labels=["good", "bad"] length=4')
    tuned = pc.compile(model, 'prompt labels=["good", "bad"] length=4', tokenizer=Words())
    pc.save(tuned, f"{tmp_path}/adapter")
    loaded = pc.load(model, f"{tmp_path}/adapter")
    with torch.no_grad():
        assert torch.equal(loaded(**zoo.inputs("llama")).logits, tuned(**zoo.inputs("llama")).logits)


@pytest.mark.parametrize(
    ("width", "count"), [(512, 51_200), (768, 76_800), (1024, 102_400), (2048, 204_800), (4096, 409_600)]
)
def test_the_counts_of_t5_v1_1_are_the_papers(width: int, count: int) -> None:
    with torch.device("meta"):
        config = transformers.T5Config(d_model=width, num_layers=1, d_ff=64, feed_forward_proj="gated-gelu")
        model = transformers.T5ForConditionalGeneration(config)
    plan = pc.plan(model, "prompt length=100")
    assert plan.trainable == count
    assert [insertion.site.path for insertion in plan.insertions] == ["encoder"]


def test_a_decoder_alone_is_asked_for() -> None:
    assert [i.site.path for i in pc.plan(zoo.build("t5"), "prompt in decoder").insertions] == ["decoder"]
    with pytest.raises(PlanError, match="1 of role input by default, 0 outside a decoder by default"):
        pc.plan(zoo.build("whisper"), "prompt")
