"""The matrix has every method, and a cell says what broke."""

from typing import Any

import pytest
import torch

from benchmarks.citizen import AREAS
from benchmarks.citizen.__main__ import FEATURES, run
from benchmarks.citizen.cell import Case
from benchmarks.citizen.methods import METHODS
from benchmarks.citizen.report import report
from peft_compiler import methods
from peft_compiler.spec.read import read_spec


def test_every_method_has_a_row() -> None:
    assert {kind.model_fields["kind"].default for kind in methods.METHODS} <= METHODS.keys()


@pytest.mark.parametrize("name", METHODS)
def test_a_row_has_the_method_that_it_names(name: str) -> None:
    kinds = {rule.use.kind for rule in read_spec(METHODS[name]).rules if rule.use is not None}
    assert kinds in ({name}, set()) or name == "all together"


def test_names_of_features_tell_them_apart() -> None:
    assert len(FEATURES) == sum(len(module.FEATURES) for module in AREAS.values())


@pytest.mark.parametrize(
    "cell",
    [
        "Generation: greedy|deep_prompts",
        "Generation: beam search|all together",
        "Generation: left padding|lora",
        "Generation: static cache|prompt",
        "Generation: assisted|prefix",
        "Generation: continued cache|p_tuning",
        "Copies and threads: 8 threads run|all together",
        "Copies and threads: 2 threads compile|x_lora",
        "Copies and threads: torch.save|compacter",
        "Frozen: statistics stay|prompt",
        "Frozen: same draws|dora",
    ],
)
def test_a_sample_of_the_cells_holds(cell: str) -> None:
    outcomes = run(cell)
    assert "held" in outcomes.values()
    assert not [outcome for outcome in outcomes.values() if outcome.startswith("broken")]


def test_a_broken_promise_is_shown_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = Case.tuned

    def forgetful(case: Case) -> Any:
        model = tuned(case)
        generate = model.generate
        model.generate = lambda **settings: generate(**settings) * settings.get("use_cache", True)
        return model

    monkeypatch.setattr(Case, "tuned", forgetful)
    with torch.random.fork_rng(devices=[]):
        outcomes = run("Generation: sampling|lora")
    assert outcomes["llama"].startswith("broken: AssertionError: Tensor-likes are not equal")
    page = report({"Generation: sampling|lora": outcomes}, AREAS, "torch", earlier=1)
    assert "| run on earlier code of the package or of the matrix | 1 |" in page
    assert "| lora |  |  |  | **✗** |" in page
    assert "## Broken" in page
