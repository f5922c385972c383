"""Settings that cannot work are refused before anything is touched, each with its reason, in these words."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import peft_compiler as pc
from peft_compiler.errors import PeftCompilerError, PlanError, SpecError
from tests import zoo

TOKENIZER = SimpleNamespace(
    encode=lambda text, add_special_tokens: [len(word) for word in text.split() if word.isalpha()]
)
"""Reads words as the number of their letters, and anything else as nothing."""


def problems_of(name: str, spec: str | dict[str, Any], tokenizer: Any = TOKENIZER) -> list[str]:
    """What a public call says of a spec, without the places where it goes wrong."""
    with pytest.raises(PeftCompilerError) as caught:
        pc.plan(zoo.build(name), spec, tokenizer=tokenizer)
    assert isinstance(caught.value, SpecError | PlanError)
    return [problem.partition("\n")[0] for problem in caught.value.problems or (str(caught.value),)]


UNFIT: dict[tuple[str, str], str] = {
    ("gpt2", "adapters width=32"): "(adapter): width=32 is no bottleneck: the place is 32 wide; take less",
    ("gpt2", "adapters width=8 rank=8"): (
        "(adapter): rank=8 is no restriction: the narrow layer has 8 units; take less"
    ),
    ("gpt2", "compacter adapters width=6"): (
        "(compacter): n=4 does not divide the 6 features of the narrow layer; take a divisor of both"
    ),
    ("gpt2", "compacter adapters width=8 rank=3"): (
        "(compacter): rank=3 exceeds that of the factors, 2; take less"
    ),
    ("gpt2", "invertible adapter width=16"): (
        "(invertible_adapter): width=16 is no bottleneck: half of the place is 16 wide; take less"
    ),
    ("gpt2", "lora r=33"): "(lora): r=33 exceeds the rank of a 32 x 32 weight: take r <= 32",
    ("gpt2", "lora bias=true on head"): (
        "(lora): bias=true has nothing to train: the projection adds no bias of its own; take bias=false"
    ),
    ("gpt2", "lora dropout=0.1 on embedding"): (
        "(lora): dropout=0.1 has no input to act on: the weight takes token ids; take dropout=0"
    ),
    ("gpt2", "lora init=kaiming on embedding"): (
        "(lora): init=kaiming draws A, which of an embedding starts at zero, and B at random; leave it out"
    ),
    ("gpt2", "oft block_size=5"): (
        "(oft): block_size=5 does not divide the 32 inputs of a row: take a divisor"
    ),
    ("gpt2", "boft block_size=4 factors=5"): (
        "(boft): block_size=4 and factors=5 mix 64 inputs, which does not divide the 32 inputs of a row: "
        "take less of either"
    ),
    ("gpt2", "boft factors=1000000"): (
        "(boft): factors=1000000 mix more than the 32 inputs of a row: take less"
    ),
    ("gpt2", "hra r=34"): "(hra): r=34 exceeds the 32 inputs of a row: take r <= 32",
    ("gpt2", "miss r=33"): "(miss): r=33 exceeds the 32 inputs of a row: take r <= 32",
    ("gpt2", "fourierft n=1025"): (
        "(fourierft): n=1025 exceeds the entries of a 32 x 32 weight: take n <= 1024"
    ),
    ("gpt2", "lokr factor=3"): "(lokr): factor=3 does not divide 32 outputs: take a divisor of both widths",
    ("gpt2", "loreft r=33"): "(loreft): r=33 is no subspace: the place is 32 wide; take less",
    ("gpt2", "loreft first=100 last=29"): (
        "(loreft): first=100 and last=29 is beyond the 128 positions of the longest input; take less"
    ),
    ("gpt2", "direft last=129"): (
        "(direft): last=129 is beyond the 128 positions of the longest input; take less"
    ),
    ("gpt2", "prefix length=129"): (
        "(prefix): length=129 is beyond the 128 positions of the longest input; take less"
    ),
    ("bert", "gated prefix length=129"): (
        "(gated_prefix): length=129 is beyond the 128 positions of the longest input; take less"
    ),
    ("bert", "deep prompts length=129"): (
        "(deep_prompts): length=129 is beyond the 128 positions of the longest input; take less"
    ),
    ("opt", "llama-adapter length=131"): (
        "(llama_adapter): length=131 is beyond the 130 positions of the longest input; take less"
    ),
    ("gpt2", "prompt length=128"): (
        "(prompt): length=128 leaves no room for tokens: the model has 128 positions"
    ),
    ("gpt2", "p-tuning length=128"): (
        "(p_tuning): length=128 leaves no room for tokens: the model has 128 positions"
    ),
    ("llama", 'prompt labels=["good", "..."]'): (
        "(prompt): the tokenizer splits the label '...' into nothing; choose another word"
    ),
    ("llama", 'prompt text="..."'): (
        "(prompt): the tokenizer splits the text '...' into nothing; choose other words"
    ),
    ("llama", 'prefix text="..."'): (
        "(prefix): the tokenizer splits the text '...' into nothing; choose other words"
    ),
    ("llama", f'prefix text="{"x" * 99}"'): (
        "(prefix): token 99 of its text is beyond the 99 entries of the embedding"
    ),
    ("llama", f'prompt text="{"x" * 99}"'): (
        "(prompt): token 99 is beyond the 99 entries of the embedding; expected the tokenizer of this model"
    ),
    ("llama", "deep prompts scale=0.1 reparametrised=true"): (
        "(deep_prompts): scale=0.1 is that of prompts which no MLP gives; leave it out"
    ),
    ("llama", "deep prompts width=8"): (
        "(deep_prompts): width=8 is that of an MLP, which there is with reparametrised=true only"
    ),
    ("llama", "prompt answer=majority"): (
        "(prompt): answer=majority is that of an ensemble: write how many prompts it has, ensemble=5"
    ),
    ("llama", "trainable tokens tokens=[99]"): (
        "(trainable_tokens): token 99 is not in the table, which has 99 rows: resize the embeddings first"
    ),
    (
        "llama",
        "trainable tokens",
    ): ("(trainable_tokens): it has no tokens to train; name them, as in tokens=[5, 9]"),
}


@pytest.mark.parametrize(("name", "sentence"), UNFIT)
def test_what_cannot_fit_a_model_is_refused(name: str, sentence: str) -> None:
    assert f"rule 1 {UNFIT[name, sentence]}" in problems_of(name, sentence)


IMPOSSIBLE: dict[str, tuple[dict[str, Any], str]] = {
    "no rank": ({"lora": {"r": 0}}, "r: 'r' is 0, expected greater than 0"),
    "half a rank": ({"lora": {"r": 1.5}}, "r: 'r' is 1.5, expected a valid integer"),
    "a truth": ({"lora": {"r": True}}, "'r' is True, expected a number"),
    "infinity": ({"lora": {"alpha": float("inf")}}, "alpha: 'alpha' is inf, expected a finite number"),
    "no number": ({"dora": {"alpha": float("nan")}}, "alpha: 'alpha' is nan, expected a finite number"),
    "beyond half precision": (
        {"lora": {"alpha": 1e30}},
        "alpha: 'alpha' is 1e+30, expected less than or equal to 65504",
    ),
    "all dropped": ({"lora": {"dropout": 1}}, "dropout: 'dropout' is 1, expected less than 1"),
    "odd reflections": ({"hra": {"r": 3}}, "r: 'r' is 3, expected a multiple of 2"),
    "a block of one": ({"oft": {"block_size": 1}}, "block_size: 'block_size' is 1, expected greater than 1"),
    "a budget that grows": (
        {"adalora": {"r": 4, "target_r": 5}},
        "target_r=5 is above r=4, from which ranks are only cut",
    ),
    "no layer": ({"p_tuning": {"layers": 0}}, "layers: 'layers' is 0, expected greater than 0"),
    "layers of nothing": (
        {"p_tuning": {"encoder": "mlp", "layers": 2}},
        "found layers=2, which are those of an LSTM; leave them out",
    ),
    "a width of nothing": (
        {"p_tuning": {"encoder": "none", "width": 4}},
        "found width=4, which is that of an encoder; leave it out",
    ),
    "no pseudo token": (
        {"p_tuning": {"template": "{text}"}},
        "found no [P] in the template; expected one for each pseudo token",
    ),
    "a loose brace": (
        {"p_tuning": {"template": "[P] {text"}},
        "found a brace in the template that is not of a text; write its name as {name}",
    ),
    "no text": ({"prompt": {"text": ""}}, "text: 'text' is '', expected a text that is not empty"),
    "no label": ({"prompt": {"labels": []}}, "labels: 'labels' has 0 items, expected at least 1"),
    "an empty label": (
        {"prompt": {"labels": ["a", ""]}},
        "labels[1]: 'labels[1]' is '', expected a text that is not empty",
    ),
    "labels left out": (
        {"prompt": {"labels": ["a", "b"], "tokens": [[1]]}},
        "found token ids of 1 labels, expected 2",
    ),
    "no prompt": ({"prompt": {"ensemble": 0}}, "ensemble: 'ensemble' is 0, expected greater than 0"),
    "a token below all": (
        {"prefix": {"text": "a", "tokens": [-1]}},
        "tokens[0]: 'tokens[0]' is -1, expected greater than or equal to 0",
    ),
    "a token twice": (
        {"trainable_tokens": {"tokens": [5, 5]}},
        "found token 5 twice; name each once",
    ),
    "a name twice": (
        {"adapter_fusion": {"adapters": ["a", "a"]}},
        "found one name twice; call each adapter something else",
    ),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_cannot_be_anywhere_is_refused(case: str) -> None:
    use, told = IMPOSSIBLE[case]
    (problem,) = problems_of("gpt2", {"rules": [{"use": use}]})
    assert problem.endswith(told)


def test_prompts_that_fit_one_by_one_but_not_together_are_refused() -> None:
    with pytest.raises(PlanError) as caught:
        pc.plan(zoo.build("gpt2"), "prompt length=70; p-tuning length=58")
    assert str(caught.value) == (
        "the spec does not fit this model\n"
        "  rule 1 (prompt) and rule 2 (p_tuning) take 128 positions together, "
        "which leaves no room for tokens\n"
        "    'transformer' (input) has 128 positions\n"
        "    take less"
    )


def test_all_is_said_at_once_and_nothing_is_touched() -> None:
    model = zoo.build("gpt2")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    sentence = "oft block_size=5; adapters width=99; prefix length=200; prompt length=200; lora r=99 on k"
    with pytest.raises(PlanError) as caught:
        pc.compile(model, sentence)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "rule 1 (oft)",
        "rule 2 (adapter)",
        "rule 3 (prefix)",
        "rule 4 (prompt)",
        "rule 5 (lora)",
    ]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_name_is_no_tokenizer() -> None:
    with pytest.raises(PlanError) as caught:
        pc.compile(zoo.build("gpt2"), 'prefix text="a b"', tokenizer="gpt2")
    assert str(caught.value) == ("the tokenizer is of type str, expected an object that can `encode` a text")
