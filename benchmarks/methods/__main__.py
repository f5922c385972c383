"""Runs what is not in `methods.jsonl` yet, then writes the report and the plot.

python -m benchmarks.methods             # hours on one thread, from nothing
python -m benchmarks.methods --report    # only writes, from what is there
"""

import argparse
from pathlib import Path

import torch

from benchmarks.methods import naming, writing
from benchmarks.methods.encoding import compare
from benchmarks.methods.ensembles import compare_members
from benchmarks.methods.plot import draw
from benchmarks.methods.report import head_alone, points, report
from benchmarks.methods.results import Results
from benchmarks.methods.sentences import movies
from peft_compiler.cli.quiet import quiet

FOLDER = Path(__file__).parents[1]


def run(results: Results, seeds: range) -> None:
    """Runs everything, what matters most first."""
    task = movies()
    compare(results, task, seeds[0])
    compare_members(results, task, seeds[0])
    starts = [
        (writing.claim(writing.abstracts()), len(seeds)),
        (naming.claim(naming.reviews()), naming.SEEDS),
    ]
    for seed in range(max(number for _, number in starts)):
        for claim, number in starts:
            if seed < number:
                claim.try_with(results, seed)
    for seed in seeds[1:]:
        compare(results, task, seed)
        compare_members(results, task, seed)


def main() -> None:
    """Reads the arguments, runs and writes."""
    parser = argparse.ArgumentParser(description="Compare every method, and try claims of their papers.")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds each comparison has")
    parser.add_argument("--report", action="store_true", help="run nothing, write from what is there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(FOLDER / "methods.jsonl")
    if not arguments.report:
        with quiet():
            run(results, range(arguments.seeds))
    (FOLDER / "methods.md").write_text(report(results))
    draw(points(results), head_alone(results), FOLDER / "methods.svg")


if __name__ == "__main__":
    main()
