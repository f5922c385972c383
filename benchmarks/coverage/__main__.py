"""Examines model types, two at a time, and writes what was found."""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from benchmarks.coverage.examine import examine
from benchmarks.coverage.results import code_digest, read_rows, write_rows
from benchmarks.coverage.targets import all_targets
from benchmarks.coverage.workers import Limits, run_all

RESULTS = Path(__file__).parent / "results.jsonl"


def main() -> None:
    """Examines what is asked for and not known yet, and appends each row as it comes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("types", nargs="*", help="model types; all by default")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--again", action="store_true", help="also what is known already")
    parser.add_argument("--without-weights", action="store_true", help="stop when the sentence is planned")
    arguments = parser.parse_args()
    targets = all_targets()
    rows = read_rows(arguments.results)
    code = code_digest()
    wanted = [
        name
        for name in arguments.types or targets
        if arguments.again or rows.get(name, {}).get("code") != code
    ]
    started = time.monotonic()
    # What a first examination imports is then there in every process that is forked.
    examine(targets["t5"])

    def work(name: str) -> dict[str, Any]:
        return examine(targets[name], weights=not arguments.without_weights)

    for done, (name, result) in enumerate(run_all(work, wanted, arguments.workers, Limits()), start=1):
        failed = {"type": name, "class": targets[name].class_name, "error": result}
        rows[name] = (failed if isinstance(result, str) else result) | {"code": code}
        with arguments.results.open("a") as file:
            file.write(json.dumps(rows[name]) + "\n")
        minutes = (time.monotonic() - started) / 60
        print(f"{done}/{len(wanted)} {minutes:.1f} min  {name}: {_outcome(rows[name])}", flush=True)
    write_rows(arguments.results, rows)


def _outcome(row: dict[str, Any]) -> str:
    for field in ("error", "not_built", "not_run", "planned", "not_run_with_weights", "refused"):
        if row.get(field):
            return f"{field}: {row[field][:140]}"
    return f"broken: {row['broken']}"[:140] if row.get("broken") else f"held ({row.get('sentence')})"


if __name__ == "__main__":
    main()
