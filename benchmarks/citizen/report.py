"""The page of the matrix: a table for each area, then every reason, then everything that is broken."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType

from benchmarks.citizen.cell import Feature
from benchmarks.citizen.methods import METHODS

_HEAD = """# A compiled model is a citizen of PyTorch and transformers

Every method, with values as training leaves them, in every respect, on small models with random weights.
A cell has the number of architectures on which it holds; `–` where it applies to none, **✗** where one
breaks it. What each column promises, on which architectures, and why a method has less of them, stands below.
Written by `make citizen`, {versions}.

| | |
| --- | --- |
| cells | {cells} |
| hold | {held} |
| do not apply | {idle} |
| broken | {broken} |
| not run yet | {missing} |
| run on earlier code of the package or of the matrix | {earlier} |
"""

Outcomes = Mapping[str, str]
"""What became of each architecture: `held`, or `n/a: ` or `broken: ` with the reason."""


def report(
    cells: Mapping[str, Outcomes], areas: Mapping[str, ModuleType], versions: str, earlier: int = 0
) -> str:
    """Returns the page.

    Args:
        cells: Outcomes by `area: feature|method`.
        areas: The features of each table.
        versions: What it was run with.
        earlier: How many of the cells were run before the code was what it is.
    """
    names = [f"{area}: {feature.says}|{method}" for area, feature, method in _all(areas)]
    shown = [_shown(cells.get(name)) for name in names]
    counts = {
        "cells": len(shown),
        "held": sum(text.isdigit() for text in shown),
        "idle": shown.count("–"),
        "broken": sum("✗" in text for text in shown),
        "missing": shown.count(""),
        "earlier": earlier,
    }
    parts = [_HEAD.format(versions=versions, **counts)]
    parts += [_table(area, module, cells) for area, module in areas.items()]
    parts += [_reasons("Does not apply", "n/a: ", cells), _reasons("Broken", "broken: ", cells)]
    return "\n".join(part for part in parts if part)


def _all(areas: Mapping[str, ModuleType]) -> Iterator[tuple[str, Feature, str]]:
    for area, module in areas.items():
        for feature in module.FEATURES:
            yield from ((area, feature, method) for method in METHODS)


def _shown(outcomes: Outcomes | None) -> str:
    if outcomes is None:
        return ""
    if any(outcome.startswith("broken") for outcome in outcomes.values()):
        return "**✗**"
    held = sum(outcome == "held" for outcome in outcomes.values())
    return str(held) if held else "–"


def _table(area: str, module: ModuleType, cells: Mapping[str, Outcomes]) -> str:
    features = module.FEATURES
    lines = [f"## {area}", "", "| | " + " | ".join(feature.says for feature in features) + " |"]
    lines.append("| --- |" + " --- |" * len(features))
    for method in METHODS:
        row = (_shown(cells.get(f"{area}: {feature.says}|{method}")) for feature in features)
        lines.append(f"| {method} | " + " | ".join(row) + " |")
    lines.append("")
    lines += [
        f"- {feature.says}: {_promise(feature.holds.__doc__)} ({', '.join(feature.architectures)})"
        for feature in features
    ]
    return "\n".join([*lines, ""])


def _promise(docstring: str) -> str:
    return " ".join(docstring.split()).rstrip(".")


def _reasons(title: str, kind: str, cells: Mapping[str, Outcomes]) -> str:
    found: dict[str, list[str]] = defaultdict(list)
    for cell, outcomes in cells.items():
        feature, method = cell.split("|")
        for architecture, outcome in outcomes.items():
            if outcome.startswith(kind):
                found[outcome.removeprefix(kind)].append(
                    f"{feature.split(': ')[1]} of {method} on {architecture}"
                )
    if not found:
        return ""
    lines = [f"- {reason}: {_listed(where)}" for reason, where in sorted(found.items())]
    return "\n".join([f"## {title}", "", *lines, ""])


def _listed(where: Iterable[str], shown: int = 6) -> str:
    names = sorted(where)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return "; ".join(names[:shown]) + more
