"""Compares everything that the adapters library wrote, and gives the tables.

    python -m benchmarks.adapters_oracle.report FOLDER            # prints every comparison
    python -m benchmarks.adapters_oracle.report FOLDER --write    # and writes adapters_oracle.md

Exits with 1 if any comparison does not come out as its case says.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import transformers

from benchmarks.adapters_oracle.case import Case
from benchmarks.adapters_oracle.cases import each
from benchmarks.adapters_oracle.compare import GRADIENTS, OUTPUTS, Difference, compared
from peft_compiler.spec.read import read_spec
from peft_compiler.spec.write import to_sentence

RESULTS = Path(__file__).parents[1] / "adapters_oracle.md"
PAGE = Path(__file__).with_name("page.md")
"""The words around the tables."""
Results = Mapping[str, tuple[Case, str, Difference]]


def as_stated(case: Case, found: Difference) -> bool:
    """Whether a comparison comes out as its case says: equal, or different where a reason is given."""
    return found.equal is (case.because is None)


def results(folder: Path, only: str = "") -> Iterator[tuple[str, Case, str, Difference]]:
    """Yields every comparison whose label matches, with what comes out."""
    for label, case, model in each():
        if re.search(only, label):
            yield label, case, model, compared(case, model, label, folder)


def shown(found: Difference) -> str:
    """Returns the differences of outputs and of gradients as two cells."""
    return f"{found.outputs:.1e} | {found.gradients:.1e}"


def sentence_of(case: Case) -> str:
    """Returns what is compiled, as a sentence."""
    return f"`{to_sentence(read_spec(case.spec))}`"


def equal_rows(found: Results) -> Iterator[str]:
    """Yields one row for each case without a reason to differ: the largest over its models."""
    by_case: dict[int, list[tuple[Case, str, Difference]]] = {}
    for case, model, difference in found.values():
        if case.because is None and case.change is None:
            by_case.setdefault(id(case), []).append((case, model, difference))
    for rows in by_case.values():
        case = rows[0][0]
        outputs, gradients = (max(getattr(d, name) for *_, d in rows) for name in ("outputs", "gradients"))
        listed = "; ".join(model for _, model, _ in rows)
        yield f"| {case.method} | {sentence_of(case)} | {listed} | {outputs:.1e} | {gradients:.1e} |"


def different_rows(found: Results) -> Iterator[str]:
    """Yields one row for each comparison that differs, with what is left once the library is changed."""
    changed = {(c.method, model): (c, d) for c, model, d in found.values() if c.change is not None}
    for case, model, difference in found.values():
        if case.because is not None:
            as_it_is = "nothing to compare" if difference.error else shown(difference).replace(" | ", " / ")
            twin = changed.get((case.method, model))
            left = "" if twin is None else f"{shown(twin[1]).replace(' | ', ' / ')}, if {twin[0].change}"
            yield f"| {case.method} | {model} | {as_it_is} | {left} | {case.because} |"


def page(found: Results, versions: Mapping[str, str]) -> str:
    """Returns the whole of adapters_oracle.md."""
    due = [(case, model, difference) for case, model, difference in found.values() if case.because is None]
    here = {"here": transformers.__version__, "torch": torch.__version__}
    bounds = {"outputs": f"{OUTPUTS:.0e}", "gradients": f"{GRADIENTS:.0e}"}
    counts = {"all": len(found), "due": len(due), "equal": sum(difference.equal for *_, difference in due)}
    tables = {
        "equal_rows": equal_rows(found),
        "different_rows": different_rows(found),
        "due_rows": (f"| {title_of(case)} | {model} | {shown(found)} |" for case, model, found in due),
    }
    rows = {name: "\n".join(lines) for name, lines in tables.items()}
    names = {"adapters": versions["adapters"], "there": versions["transformers"]}
    return PAGE.read_text(encoding="utf-8").format(**names, **here, **bounds, **counts, **rows)


def title_of(case: Case) -> str:
    """Returns the method, and what is changed of the library."""
    return case.method if case.change is None else f"{case.method}; in the library {case.change}"


def main() -> None:
    """Compares, prints, writes if asked, and says what is not as stated."""
    parser = argparse.ArgumentParser(description="Compare with what the adapters library wrote.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="pattern of the labels to compare")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    arguments = parser.parse_args()
    found: dict[str, tuple[Case, str, Difference]] = {}
    for label, case, model, difference in results(arguments.folder, arguments.only):
        found[label] = case, model, difference
        verdict = "" if as_stated(case, difference) else "NOT AS STATED"
        print(label, case.method, difference.error or shown(difference), verdict, flush=True)
    if arguments.write:
        versions = json.loads((arguments.folder / "versions.json").read_text())
        RESULTS.write_text(page(found, versions), encoding="utf-8")
    sys.exit(0 if all(as_stated(case, difference) for case, _, difference in found.values()) else 1)


if __name__ == "__main__":
    main()
