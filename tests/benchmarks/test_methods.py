"""The comparison of all methods runs, on models that take seconds, and its report is that of its results."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.methods import ensembles, naming, writing
from benchmarks.methods.claims import NOTHING, chosen_rate
from benchmarks.methods.encoding import compare, spec_of
from benchmarks.methods.ensembles import compare_members
from benchmarks.methods.plot import draw
from benchmarks.methods.report import head_alone, points, report, verdict
from benchmarks.methods.results import Results
from benchmarks.methods.rows import HEAD_ALONE, ROWS
from benchmarks.methods.sentences import Sentences
from peft_compiler.methods import METHODS
from peft_compiler.spec.read import read_spec
from tests.zoo import VOCABULARY, build

FOLDER = Path(__file__).parents[2] / "benchmarks"
TOKENIZER = SimpleNamespace(encode=lambda text, add_special_tokens=True: [3 + ord(c) % 90 for c in text[:6]])
FEW = [
    row
    for row in (HEAD_ALONE, *ROWS)
    if row.name in ("trained_copy", "adalora", "pfeiffer_adapter", "adapter_fusion", "lora", "x_lora")
]


def ids(rows: int, seed: int) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (rows, 5), generator=torch.Generator().manual_seed(seed))


def sentences() -> Sentences:
    def batches(number: int) -> list[dict[str, torch.Tensor]]:
        found = [ids(4, seed) for seed in range(number)]
        return [{"input_ids": x, "attention_mask": torch.ones_like(x), "labels": x[:, 0] % 2} for x in found]

    def load(seed: int) -> nn.Module:
        model = build("bert")
        model.config.problem_type = "single_label_classification"
        return model

    return Sentences(load, batches(5), batches(1), batches(2), {"products": batches(1), "tweets": batches(1)})


def reviews() -> naming.Naming:
    batch = naming.padded([([5, 6, 7], 11), ([8], 12)], padding=0)
    return naming.Naming(build("llama"), TOKENIZER, (11, 12), [batch], [batch], [batch])


def abstracts() -> writing.Writing:
    batch: Any = {"input_ids": ids(2, 0), "labels": ids(2, 0), "use_cache": False}
    return writing.Writing(build("llama"), TOKENIZER, [batch], [batch], [batch])


def test_every_method_has_a_row() -> None:
    kinds = {method.model_fields["kind"].default for method in METHODS}
    assert kinds <= {row.name for row in (HEAD_ALONE, *ROWS)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_is_a_spec(row: Any) -> None:
    assert read_spec(spec_of(sentences(), row)).rules


def test_methods_are_trained_and_compared_once(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.jsonl")
    task = sentences()
    for seed in (0, 1):
        compare(results, task, seed, FEW)
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert len(lines) == sum(len(row.rates) + 1 for row in FEW)
    assert all(0 <= line["test"] <= 1 for line in results.lines)
    assert results.of(row="trained_copy")[0]["parameters"] == 0
    again = Results(tmp_path / "results.jsonl")
    compare(again, task, 0, FEW)
    assert again.lines == results.lines
    assert (tmp_path / "results.jsonl").read_text().splitlines() == lines


def test_the_members_of_an_ensemble_are_what_answers(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.jsonl")
    compare(results, sentences(), 0, [row for row in ROWS if row.name == "prompt"])
    compare_members(results, sentences(), 0)
    [line] = results.of(experiment=ensembles.EXPERIMENT)
    assert len(line["members"]) == ensembles.MEMBERS


@pytest.mark.parametrize(
    ("claim", "experiment", "best"),
    [
        (lambda: naming.claim(reviews()), naming.EXPERIMENT, max),
        (lambda: writing.claim(abstracts()), writing.EXPERIMENT, min),
    ],
    ids=["prompts", "prefixes"],
)
def test_every_arm_is_tried_at_every_rate_and_goes_on_at_its_best(
    claim: Any, experiment: str, best: Any, tmp_path: Path
) -> None:
    results = Results(tmp_path / "results.jsonl")
    made = claim()
    for seed in (0, 1):
        made.try_with(results, seed)
    assert len(results.of(experiment=experiment, arm=NOTHING)) == 1
    for arm in made.arms:
        assert [line["rate"] for line in results.of(arm=arm, seed=0)] == list(made.rates)
        [later] = results.of(arm=arm, seed=1)
        assert later["rate"] == chosen_rate(results, experiment, arm, best)


def test_answers_come_after_padding_on_the_left() -> None:
    batch = naming.padded([([5, 6, 7], 11), ([8], 12)], padding=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [0, 0, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch["answer"].tolist() == [11, 12]


def test_less_loss_is_better() -> None:
    assert verdict("a", {0: 1.0}, "b", {0: 2.0}, min).endswith("better a with 1 of 1 seed.")
    assert verdict("a", {0: 1.0}, "b", {0: 1.0}, min).endswith("better a with 0 of 1 seed.")


def test_the_report_is_that_of_the_results() -> None:
    assert (FOLDER / "methods.md").read_text() == report(Results(FOLDER / "methods.jsonl"))


def test_the_picture_names_every_method(tmp_path: Path) -> None:
    results = Results(FOLDER / "methods.jsonl")
    drawn = points(results)
    draw(drawn, head_alone(results), tmp_path / "methods.svg")
    written = (tmp_path / "methods.svg").read_text()
    assert {point.name for point in drawn} == {row.name for row in ROWS if results.of(row=row.name)}
    assert all(point.name in written for point in drawn)
