"""Copies, files and threads: what comes of a compiled model is one too, and computes the same."""

import copy
import io
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

import peft_compiler as pc
from benchmarks.citizen.cell import Case, Feature
from benchmarks.citizen.methods import METHODS
from tests import zoo
from tests.test_compiling import main_output

ARCHITECTURES = ("llama", "gpt2", "t5", "bert", "handmade")


def deep_copied(case: Case) -> None:
    """A deep copy computes the same, and is a model of its own."""
    tuned = case.tuned()
    other = copy.deepcopy(tuned)
    assert torch.equal(_output(case, other), _output(case, tuned))
    before = _output(case, tuned)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(_output(case, tuned), before)


def pickled(case: Case) -> None:
    """So does what pickle brings back."""
    _comes_back(case, lambda tuned: pickle.loads(pickle.dumps(tuned)))


def saved_by_torch(case: Case) -> None:
    """So does what torch.save wrote, and its state dict loads into the model compiled anew."""

    def through_a_file(model: Any, weights_only: bool) -> Any:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        return torch.load(file, weights_only=weights_only)

    _comes_back(case, lambda tuned: through_a_file(tuned, weights_only=False))
    tuned, fresh = case.tuned(), case.untrained().eval()
    fresh.load_state_dict(through_a_file(tuned.state_dict(), weights_only=True))
    assert torch.equal(_output(case, fresh), _output(case, tuned))


def run_by_threads(case: Case) -> None:
    """Eight threads that run one model, each at sizes of its own, get what one thread gets."""
    tuned, sizes = case.tuned(), [(1 + index % 3, 5 + index) for index in range(8)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda size: _output(case, tuned, *size), sizes))
    for size, output in zip(sizes, found, strict=True):
        assert torch.equal(output, _output(case, tuned, *size))


def compiled_by_threads(case: Case) -> None:
    """Two threads compile two models, which are those that one thread compiles."""
    expected = case.untrained().eval()
    bases = case.base(), case.base()  # one after another: they are drawn from the state that threads share
    with ThreadPoolExecutor(2) as threads:
        pair = threads.map(lambda base: pc.compile(base, METHODS[case.method]), bases)
    for tuned in pair:
        assert torch.equal(_output(case, tuned.eval()), _output(case, expected))


def _comes_back(case: Case, through: Callable[[Any], Any]) -> None:
    tuned = case.tuned()
    other = through(tuned)
    assert type(other) is type(tuned)
    assert torch.equal(_output(case, other), _output(case, tuned))


def _output(case: Case, model: Any, batch: int = 2, length: int = 7) -> Tensor:
    with torch.no_grad():
        return main_output(model(**zoo.inputs(case.architecture, batch, length)))


FEATURES = (
    Feature("deepcopy", deep_copied, ARCHITECTURES),
    Feature("pickle", pickled, ARCHITECTURES),
    Feature("torch.save", saved_by_torch, ARCHITECTURES),
    Feature("8 threads run", run_by_threads, ARCHITECTURES),
    Feature("2 threads compile", compiled_by_threads, ARCHITECTURES),
)
