"""Every method on the encoder, with a trained head."""

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

import peft_compiler as pc
from benchmarks.methods.results import Results
from benchmarks.methods.rows import HEAD_ALONE, ROWS, Row
from benchmarks.methods.sentences import Sentences, accuracy
from benchmarks.methods.training import parameters, train
from peft_compiler.lowering.compilation import compilation_of
from peft_compiler.methods import AdapterFusion, Method, XLoRA

EXPERIMENT = "methods"
FIRST = 0
"""The seed with which rates are chosen."""
SINGLE: Mapping[type[Method], str] = {AdapterFusion: "pfeiffer_adapter", XLoRA: "lora"}
"""For each method that takes saved adapters, the row that one of them is before it is fused."""


def compare(results: Results, task: Sentences, seed: int, rows: Iterable[Row] = (HEAD_ALONE, *ROWS)) -> None:
    """Trains every row with one seed: with the first one at each of its rates, then at the best of them."""
    for row in rows:
        for rate in row.rates if seed == FIRST else (chosen_rate(results, row.name),):
            key = {"experiment": EXPERIMENT, "row": row.name, "rate": rate, "seed": seed}
            results.get(key, lambda row=row, rate=rate: run(results, task, row, rate, seed))


def chosen_rate(results: Results, name: str) -> float:
    """Returns the rate with which a row is best on the validation sentences, the lowest of equal ones."""
    tried = sorted(results.of(experiment=EXPERIMENT, row=name, seed=FIRST), key=lambda line: line["rate"])
    return max(tried, key=lambda line: line["validation"])["rate"]


def run(results: Results, task: Sentences, row: Row, rate: float, seed: int) -> dict[str, Any]:
    """Returns the accuracies of a row once it is trained."""
    tuned = compiled(results, task, row, seed)
    train(tuned, task.train, rate, seed)
    validation = {"validation": accuracy(tuned, task.validation)} if seed == FIRST else {}
    return {**validation, "test": accuracy(tuned, task.test), **parameters(tuned)}


def compiled(results: Results, task: Sentences, row: Row, seed: int) -> nn.Module:
    """Returns the base compiled with a row and a trained head; adapters that it takes are trained before."""
    base = task.load(seed)
    tuned = pc.compile(base, spec_of(task, row), task.test[0], seed=seed)
    methods = {type(each.method) for each in compilation_of(tuned).plan.insertions}
    for method in methods & SINGLE.keys():
        [single] = [each for each in ROWS if each.name == SINGLE[method]]
        fuse_trained(tuned, base, task, single, chosen_rate(results, single.name), seed)
    return tuned


def spec_of(task: Sentences, row: Row) -> str:
    """Returns a row's whole sentence."""
    return "; ".join(filter(None, [row.sentence.format(frequent=task.frequent), "train head"]))


def fuse_trained(
    tuned: nn.Module, base: nn.Module, task: Sentences, single: Row, rate: float, seed: int
) -> None:
    """Trains an adapter on each task, and copies them to their places in `tuned`."""
    tasks = {"movies": task.train, **task.others}
    with tempfile.TemporaryDirectory() as folder:
        folders = {name: Path(folder) / name for name in tasks}
        for name, batches in tasks.items():
            adapter = pc.compile(base, spec_of(task, single), batches[0], seed=seed)
            train(adapter, batches, rate, seed)
            pc.save(adapter, folders[name])
        pc.fuse(tuned, folders)
