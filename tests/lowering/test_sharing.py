"""Two tasks on one backbone: one set of insertions, and a head for each."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import peft_compiler as pc
from peft_compiler.errors import InterchangeError, LoweringError, PeftCompilerError
from tests import zoo
from tests.test_compiling import stir

PROMPTS = "deep prompts length=3; train head"


def tagger() -> nn.Module:
    """Returns a token classifier on the backbone of the sequence classifier, which has a pooler too."""
    config = transformers.BertConfig(**zoo.build("bert").config.to_dict() | {"num_labels": 3})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = transformers.BertForTokenClassification(config).eval()
    model.bert.load_state_dict(zoo.build("bert").bert.state_dict(), strict=False)
    return model


def pair(sentence: str) -> tuple[nn.Module, nn.Module]:
    first = pc.compile(zoo.build("bert"), sentence)
    return first, pc.compile(tagger(), sentence, shared_with=first)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(**zoo.inputs("bert")).logits


def learning(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    "rules",
    [
        "deep prompts length=3",
        "deep prompts length=3 reparametrised=true",
        "gated prefix length=3",
        "prompt length=3",
        "LoRA r=2 on q,v; adapters width=4 after FFN",
        "vera r=5 on q",
        "x-lora r=2 on q,v",
        "trained copy on norm",
    ],
)
def test_what_rules_insert_is_one_and_heads_are_two(rules: str) -> None:
    first, second = pair(f"{rules}; train head")
    shared = {name for name, p in learning(second).items() if any(p is q for q in first.parameters())}
    assert shared == {name for name in learning(second) if "trained_copy" not in name or "norm" in name}
    buffers = [name for name, _ in second.named_buffers() if "inserted" in name]
    assert all(second.get_buffer(name) is first.get_buffer(name) for name in buffers)
    for model in (first, second):
        report = pc.verify(model)
        assert report.ok, str(report)


def test_a_step_on_either_task_moves_both() -> None:
    first, second = pair(PROMPTS)
    optimiser = torch.optim.SGD({*first.parameters(), *second.parameters()}, lr=0.1)
    for trained, other in ((first, second), (second, first)):
        before, heads = logits(other), {n: p.clone() for n, p in learning(other).items() if "head" in n}
        assert heads
        optimiser.zero_grad()
        trained(**zoo.inputs("bert")).logits.square().mean().backward()
        optimiser.step()
        assert not torch.equal(logits(other), before)
        assert all(torch.equal(learning(other)[name], head) for name, head in heads.items())


def test_the_modes_of_both_are_their_own() -> None:
    first, second = pair("LoRA r=2 dropout=0.5 on q; train head")
    stir(first)
    first.train()
    assert torch.equal(logits(second), logits(second))
    assert not any(module.training for module in second.modules())


def test_one_optimiser_gets_each_parameter_once() -> None:
    first, second = pair("LoRA r=2 on q,v; train head")
    groups = pc.parameter_groups([first, second], lr=0.1)
    given = [id(parameter) for group in groups for parameter in group["params"]]
    expected = {id(p) for model in (first, second) for p in learning(model).values()}
    assert sorted(given) == sorted(expected)
    assert len(learning(first)) + len(learning(second)) > len(expected)
    assert [len(group["params"]) for group in groups] == [len(expected) - 4, 4]
    with pytest.raises(PeftCompilerError, match=r"^no model was given, expected at least one$"):
        pc.parameter_groups([], lr=0.1)


def as_pickled(models: Any) -> Any:
    return pickle.loads(pickle.dumps(models))


@pytest.mark.parametrize("copied", [copy.deepcopy, as_pickled])
def test_copies_made_together_share_and_a_copy_of_one_is_apart(copied: Any) -> None:
    models = pair(PROMPTS)
    first, second = copied(models)
    alone = copied(models[1])
    name = "bert.encoder.layer.0.attention.self.inserted.core_deep_prompts.keys"
    assert first.get_parameter(name) is second.get_parameter(name)
    assert first.get_parameter(name) is not models[0].get_parameter(name)
    assert alone.get_parameter(name) is not models[0].get_parameter(name)
    assert all(torch.equal(logits(model), logits(models[1])) for model in (second, alone))


# ---- files


@pytest.mark.parametrize("rules", ["deep prompts length=3 reparametrised=true", "LoRA r=2 on q,v"])
def test_each_folder_is_whole_and_both_load_as_one(rules: str, tmp_path: Path) -> None:
    models = pair(f"{rules}; train head")
    for model in models:
        stir(model)
    for model, name in zip(models, ("first", "second"), strict=True):
        pc.save(model, tmp_path / name)
    first = pc.load(zoo.build("bert"), tmp_path / "first")
    second = pc.load(tagger(), tmp_path / "second", shared_with=first)
    alone = pc.load(tagger(), tmp_path / "second")
    for loaded, model in ((first, models[0]), (second, models[1]), (alone, models[1])):
        assert torch.equal(logits(loaded), logits(model))
    shared = [p for name, p in learning(second).items() if "trained_copy" not in name]
    assert shared
    assert all(any(p is q for q in first.parameters()) for p in shared)
    assert not any(p is q for p in learning(alone).values() for q in first.parameters())


def test_a_folder_of_another_state_changes_nothing(tmp_path: Path) -> None:
    first, second = pair(PROMPTS)
    pc.save(second, tmp_path / "second")
    stir(first)
    before = logits(first)
    with pytest.raises(InterchangeError) as caught:
        pc.load(tagger(), tmp_path / "second", shared_with=first)
    path = "bert.encoder.layer.{}.attention.self.inserted.core_deep_prompts.{}"
    assert str(caught.value).splitlines() == [
        f"{tmp_path / 'second'}: the adapter was saved in another state than that of the model to share with",
        *(
            f"  {path.format(layer, part)} has other values there: load both from what was saved together"
            for layer in range(2)
            for part in ("keys", "values")
        ),
    ]
    assert torch.equal(logits(first), before)


# ---- what cannot be shared


def refused(model: nn.Module, sentence: str, other: nn.Module) -> list[str]:
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(LoweringError) as caught:
        pc.compile(model, sentence, shared_with=other)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    summary, *problems = str(caught.value).splitlines()
    assert summary == "the plan cannot be lowered"
    return [problem.strip() for problem in problems]


def test_every_reason_is_listed() -> None:
    base = tagger()
    with torch.no_grad():
        base.bert.encoder.layer[1].attention.self.query.bias.add_(1)
    layer = "bert.encoder.layer.{}.attention.self.inserted.core_deep_prompts"
    query = "bert.encoder.layer.{}.attention.self.query"
    other = pc.compile(zoo.build("bert"), "deep prompts length=3; LoRA r=2 on q of layers 1")
    for parameter in other.get_submodule(layer.format(0)).parameters():
        parameter.requires_grad_(False)
    assert refused(base, "deep prompts length=3; LoRA r=3 on q", other) == [
        f"{layer.format(0)}: is frozen in the model to share with: let it require gradients",
        f"{layer.format(1)}: the bases differ in {query.format(1)}.bias: share between models on one base",
        f"{query.format(0)}.inserted.query_lora: the model to share with has no insertion there",
        f"{query.format(1)}.inserted.query_lora: would be 'lora r=3 alpha=3', the model to share with has "
        "'lora r=2 alpha=2'",
        f"{query.format(1)}.inserted.query_lora: the bases differ in {query.format(1)}.bias: share between "
        "models on one base",
    ]


def test_places_of_another_width_are_told_apart() -> None:
    config = zoo.build("bert").config.to_dict() | {"intermediate_size": 48}
    wider = transformers.BertForTokenClassification(transformers.BertConfig(**config)).eval()
    other = pc.compile(zoo.build("bert"), "LoRA r=2 on up of layers 0")
    problems = refused(wider, "LoRA r=2 on up of layers 0", other)
    where = "bert.encoder.layer.0.intermediate.dense.inserted.up_lora"
    assert problems[:2] == [
        f"{where}: widths would be [32, 48], the model to share with has [32, 64]",
        f"{where}: parameters would be 160, the model to share with has 192",
    ]


def test_a_spec_without_rules_shares_nothing() -> None:
    other = pc.compile(zoo.build("bert"), PROMPTS)
    assert refused(tagger(), "train head", other) == [
        "nothing would be shared, as the spec has no rules: leave shared_with out"
    ]


def test_what_was_not_compiled_cannot_be_shared_with() -> None:
    with pytest.raises(PeftCompilerError, match="a BertForSequenceClassification that was not compiled"):
        pc.compile(tagger(), PROMPTS, shared_with=zoo.build("bert"))
