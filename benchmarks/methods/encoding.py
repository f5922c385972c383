"""Every method on the encoder, with a trained head."""

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

import peft_compiler as pc
from benchmarks.methods.results import Results
from benchmarks.methods.rows import FAMILIES, HEAD_ALONE, ROWS, Row
from benchmarks.methods.sentences import Sentences, accuracy
from benchmarks.methods.training import parameters, train
from peft_compiler.lowering.compilation import compilation_of
from peft_compiler.methods import AdapterFusion


def choose_rates(results: Results, task: Sentences, families: Iterable[str] = FAMILIES) -> None:
    """Runs the representative of each family at each of its rates, with the first seed."""
    rows = {row.name: row for row in ROWS}
    for family in families:
        for rate in FAMILIES[family].rates:
            run(results, task, rows[FAMILIES[family].representative], rate, 0, validate=True)


def chosen_rate(results: Results, family: str) -> float:
    """Returns the rate with the highest accuracy on the validation sentences, the lowest of equal ones."""
    lines = results.of(experiment="methods", row=FAMILIES[family].representative, seed=0)
    tried = [line for line in lines if "validation" in line]
    return max(sorted(tried, key=lambda line: line["rate"]), key=lambda line: line["validation"])["rate"]


def compare(results: Results, task: Sentences, seed: int, rows: Iterable[Row] = (HEAD_ALONE, *ROWS)) -> None:
    """Trains every row with one seed, at the rate of its family."""
    for row in rows:
        run(results, task, row, chosen_rate(results, row.family), seed)


def run(
    results: Results, task: Sentences, row: Row, rate: float, seed: int, validate: bool = False
) -> Mapping[str, Any]:
    """Returns the accuracies of a row once it is trained, of an earlier run if there is one."""

    def measured() -> dict[str, Any]:
        tuned = compiled(task, row, seed, rate)
        train(tuned, task.train, rate, seed)
        validation = {"validation": accuracy(tuned, task.validation)} if validate else {}
        return {**validation, "test": accuracy(tuned, task.test), **parameters(tuned)}

    return results.get({"experiment": "methods", "row": row.name, "rate": rate, "seed": seed}, measured)


def compiled(task: Sentences, row: Row, seed: int, rate: float) -> nn.Module:
    """Returns the base compiled with a row and a trained head; a fusion's adapters are trained before."""
    base = task.load(seed)
    tuned = pc.compile(base, spec_of(task, row), task.test[0], seed=seed)
    fusions = [
        each.method
        for each in compilation_of(tuned).plan.insertions
        if isinstance(each.method, AdapterFusion)
    ]
    if fusions:
        fuse_trained(tuned, base, {"movies": task.train, **task.others}, rate, seed)
    return tuned


def spec_of(task: Sentences, row: Row) -> str:
    """Returns a row's whole sentence."""
    return "; ".join(filter(None, [row.sentence.format(frequent=task.frequent), "train head"]))


def fuse_trained(tuned: nn.Module, base: nn.Module, tasks: Mapping[str, Any], rate: float, seed: int) -> None:
    """Trains an adapter on each task, and copies them into the fusions of `tuned`."""
    with tempfile.TemporaryDirectory() as folder:
        folders = {name: Path(folder) / name for name in tasks}
        for name, batches in tasks.items():
            single = pc.compile(base, "Pfeiffer adapters; train head", batches[0], seed=seed)
            train(single, batches, rate, seed)
            pc.save(single, folders[name])
        pc.fuse(tuned, folders)
