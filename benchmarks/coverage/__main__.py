"""Examines model types, two at a time, and writes what was found; what is known already is not done again."""

import argparse
import gc
import json
import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.coverage.examine import examine
from benchmarks.coverage.report import outcome, report
from benchmarks.coverage.results import digest_of, read_rows, write_rows
from benchmarks.coverage.targets import Target, all_targets
from benchmarks.coverage.workers import Limits, run_all

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results.jsonl"
REPORT = FOLDER.with_suffix(".md")
CODE = "peft_compiler", "benchmarks/coverage"


def main() -> None:
    """Examines what is asked for and not known yet, appends each row as it comes, and writes the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("types", nargs="*", help="model types; all by default")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON lines, one a type")
    parser.add_argument("--report", type=Path, help=f"{REPORT.name}, unless results are elsewhere")
    parser.add_argument("--again", action="store_true", help="also what is known already")
    parser.add_argument("--without-weights", action="store_true", help="stop when the sentence is planned")
    arguments = parser.parse_args()
    rows, targets, code = (
        read_rows(arguments.results),
        all_targets(),
        digest_of(*CODE),
    )
    wanted = [
        name
        for name in arguments.types or targets
        if arguments.again or not _is_done(rows.get(name, {}), code, not arguments.without_weights)
    ]
    for name, row in _examined(wanted, targets, arguments):
        rows[name] = row | {"code": code}
        with arguments.results.open("a") as file:
            file.write(json.dumps(rows[name]) + "\n")
    write_rows(arguments.results, rows)
    page = arguments.report or (REPORT if arguments.results == RESULTS else None)
    if page is not None:
        page.write_text(report(rows.values(), _versions()))


def _is_done(row: dict[str, Any], code: str, weights: bool) -> bool:
    """Whether a row is of this code, and has what needs weights if that is wanted and can be had."""
    lacks_weights = weights and row.get("ran", False) and "held" not in row
    return row.get("code") == code and not lacks_weights


def _examined(
    wanted: list[str], targets: dict[str, Target], arguments: argparse.Namespace
) -> Iterable[tuple[str, dict[str, Any]]]:
    if not wanted:
        return
    # What a first examination imports is then there in every process that is forked.
    examine(targets["t5"])
    gc.freeze()
    started = time.monotonic()

    def work(name: str) -> dict[str, Any]:
        return examine(targets[name], weights=not arguments.without_weights)

    for done, (name, found) in enumerate(run_all(work, wanted, arguments.workers, Limits()), start=1):
        failed = {"type": name, "class": targets[name].class_name, "error": found}
        row = failed if isinstance(found, str) else found
        minutes = (time.monotonic() - started) / 60
        print(f"{done}/{len(wanted)} {minutes:.1f} min  {name}: {outcome(row)}", flush=True)
        yield name, row


def _versions() -> str:
    return f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}"


if __name__ == "__main__":
    main()
