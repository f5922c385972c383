"""Runs every cell of the matrix, two at a time, and writes the page; what is known is not run again."""

import argparse
import json
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.citizen import AREAS
from benchmarks.citizen.cell import Case, Feature, NotApplicableError
from benchmarks.citizen.methods import METHODS
from benchmarks.citizen.report import report
from benchmarks.coverage.results import digest_of
from benchmarks.coverage.workers import Limits, run_all

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results.jsonl"
REPORT = FOLDER.with_suffix(".md")
FEATURES: Mapping[str, Feature] = {
    f"{area}: {feature.says}": feature for area, module in AREAS.items() for feature in module.FEATURES
}
LIMITS = Limits(processor_seconds=600, wall_seconds=1800, memory=16 * 2**30)


def main() -> None:
    """Runs what is asked for and not known yet, and writes each cell as it comes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.citizen", description=__doc__)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--features", default="", help="those that hold this text")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON lines, one a cell")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--again", action="store_true", help="also what is known already")
    arguments = parser.parse_args()
    rows, code = _read(arguments.results), digest_of("peft_compiler", "benchmarks/citizen")
    wanted = [
        f"{feature}|{method}"
        for feature in FEATURES
        for method in arguments.methods
        if arguments.features in feature
        and (arguments.again or rows.get(f"{feature}|{method}", {}).get("code") != code)
    ]
    started = time.monotonic()
    for done, (cell, found) in enumerate(run_all(run, wanted, arguments.workers, LIMITS), start=1):
        outcomes = {"": f"broken: {found}"} if isinstance(found, str) else found
        rows[cell] = {"cell": cell, "outcomes": outcomes, "code": code}
        with arguments.results.open("a") as file:
            file.write(json.dumps(rows[cell]) + "\n")
        broken = [f"{name} {outcome}" for name, outcome in outcomes.items() if outcome.startswith("broken")]
        minutes = (time.monotonic() - started) / 60
        print(f"{done}/{len(wanted)} {minutes:.1f} min  {cell}: {'; '.join(broken) or 'ok'}", flush=True)
    known = {f"{feature}|{method}" for feature in FEATURES for method in METHODS}
    rows = {cell: rows[cell] for cell in sorted(known & rows.keys())}
    arguments.results.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
    if arguments.results == RESULTS:
        versions = f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}"
        outcomes = {cell: row["outcomes"] for cell, row in rows.items()}
        REPORT.write_text(
            report(outcomes, AREAS, versions, sum(row["code"] != code for row in rows.values()))
        )


def run(cell: str) -> dict[str, Any]:
    """Returns what became of each architecture: held, does not apply and why, or broken and how."""
    feature, method = cell.split("|")
    transformers.logging.set_verbosity_error()
    return {name: _outcome(FEATURES[feature], Case(method, name)) for name in FEATURES[feature].architectures}


def _outcome(feature: Feature, case: Case) -> str:
    try:
        feature.holds(case)
    except NotApplicableError as reason:
        return f"n/a: {reason}"
    except Exception as error:
        return f"broken: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return "held"


def _read(file: Path) -> dict[str, dict[str, Any]]:
    if not file.exists():
        return {}
    rows = (json.loads(line) for line in file.read_text().splitlines())
    return {row["cell"]: row for row in rows}


if __name__ == "__main__":
    main()
