"""The rows as a page for people: totals, one line a type, and what was refused and why."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from benchmarks.coverage.explained import EXPLAINED
from benchmarks.coverage.sentences import WHOLE
from benchmarks.coverage.targets import LANGUAGE

Row = Mapping[str, Any]
_LONGEST_REASON = 160


def report(rows: Iterable[Row], versions: str) -> str:
    """Returns the page."""
    rows = sorted(rows, key=lambda row: row["type"])
    parts = [
        "# Coverage",
        "",
        "Every model type of the installed transformers that has a model, from its default config: sites",
        "found on the meta device at a few layers, roles compared with well-known parameter names, and",
        f"`{WHOLE}`",
        "compiled into a small model with random weights, whose promises are tried (see `promises.py`).",
        "Types without attention are tried with what they have; the last column says what does not apply.",
        "Depth, widths and example inputs are derived from fields and signatures.",
        f"Written by `make coverage`, {versions}.",
        "",
        *_totals(rows),
        "",
        "`roles`: found roles against those of the names, q k v o up down: `=` all equal, `+` more than the",
        "names tell, else what differs. `sentence`: held, or the first promise that is not.",
        "",
        "| type | kind | sites: q / cross / up / mixer | roles | sentence | found, refused, does not apply |",
        "| --- | --- | --- | --- | --- | --- |",
        *map(_line, rows),
        "",
        "## Where names and dataflow differ",
        "",
        *_differences(rows),
        "",
        "## What the comparison leaves out",
        "",
        "What names tell, no site bears out, and does not count as missing; layer numbers left out.",
        "",
        *_exclusions(rows),
    ]
    return "\n".join(parts) + "\n"


def _totals(rows: list[Row]) -> list[str]:
    tried = [row for row in rows if "attention" in row]
    attending = [row for row in tried if row["attention"]]
    others = [row for row in tried if not row["attention"]]
    weighed = [row for row in attending if "runs_with_weights" in row]
    with_weights = [row for row in weighed if row["runs_with_weights"]]
    others = [row for row in others if "runs_with_weights" in row]
    language = [row for row in tried if row["kind"] in LANGUAGE]
    rest = [row for row in tried if row["kind"] not in LANGUAGE]
    lines: list[tuple[str, str]] = [
        ("types with a model", str(len(rows))),
        ("built", _share(rows, rows, lambda row: bool(row.get("built")))),
        ("built and ran", _share(rows, rows, lambda row: bool(row.get("ran")))),
        ("of those on derived inputs", _share(tried, tried, lambda row: row["inputs"] == "derived")),
        ("with attention", str(len(attending))),
        ("roles as the names have them, language models", _share(language, language, roles_agree)),
        ("roles as the names have them, others", _share(rest, rest, roles_agree)),
        ("a role that a name contradicts", str(sum(bool(row["oracle"]["wrong"]) for row in tried))),
        ("sentence planned, with attention", _share(attending, attending, lambda row: row["planned"] == "")),
        ("of those tried so far with weights", str(len(weighed))),
        ("a small model with weights runs", _share(weighed, weighed, _runs)),
        ("sentence held, of those", _share(with_weights, with_weights, _held)),
        ("what applies held, without attention, tried so far", _share(others, others, _held)),
    ]
    return ["| | |", "| --- | --- |", *(f"| {what} | {number} |" for what, number in lines)]


def _share(rows: list[Row], of: list[Row], holds: Callable[[Row], bool]) -> str:
    count = sum(map(holds, rows))
    return f"{count} of {len(of)} ({count / len(of):.1%})" if of else "0 of 0"


def _held(row: Row) -> bool:
    return bool(row.get("held"))


def _runs(row: Row) -> bool:
    return bool(row.get("runs_with_weights"))


def roles_agree(row: Row) -> bool:
    """Whether no name tells a role that was not found, and none contradicts one that was."""
    return not row["oracle"]["missing"] and not row["oracle"]["wrong"]


def _line(row: Row) -> str:
    sites, oracle = row.get("sites", {}), row.get("oracle")
    counts = [
        sites.get("attention.query", 0),
        sites.get("attention.query (cross)", 0),
        sites.get("feed_forward.up", 0),
        sites.get("mixer.input", 0),
    ]
    roles = "" if oracle is None else _roles(oracle)
    shown = " / ".join(map(str, counts)) if sites else ""
    return f"| {row['type']} | {row.get('kind', '')} | {shown} | {roles} | {outcome(row)} | {_remarks(row)} |"


def _roles(oracle: Mapping[str, Any]) -> str:
    parts = [f"{len(oracle[what])} {what}" for what in ("missing", "wrong") if oracle[what]]
    return ", ".join(parts) or ("+" if oracle["unnamed"] else "=")


def outcome(row: Row) -> str:
    """Returns what came of the sentence in a word or two."""
    if row.get("error"):
        return "error"
    if not row.get("built"):
        return "not built"
    if not row.get("ran"):
        return "not run"
    if row["planned"]:
        return "refused by the plan" if row["sentence"] else "nothing to adapt"
    if "runs_with_weights" not in row:
        return "planned"
    if not row["runs_with_weights"]:
        return "planned; no small model runs"
    if row.get("refused"):
        return "refused when compiled"
    if row.get("broken"):
        return "broken: " + "; ".join(row["broken"])
    return "held" if row["attention"] else f"held: {row['sentence']}"


def _remarks(row: Row) -> str:
    remarks = [*row.get("does_not_apply", ())]
    for field in ("error", "not_built", "not_run", "planned", "not_run_with_weights", "refused"):
        if row.get(field) and row[field] not in remarks:
            remarks.append(row[field])
            break
    remarks += [f"{promise}: {detail}" for promise, detail in row.get("broken", {}).items()][:1]
    return "; ".join(map(_plain, remarks))


def _plain(text: str) -> str:
    without_address = re.sub(r"0x[0-9a-f]+", "0x…", text.replace("|", "/").replace("`", "'"))
    shown = without_address[:_LONGEST_REASON]
    return shown + ("…" if len(without_address) > _LONGEST_REASON else "")


def _differences(rows: list[Row]) -> list[str]:
    lines: list[str] = []
    for row in rows:
        for what in ("wrong", "missing", "mixer"):
            if row.get("oracle", {}).get(what):
                lines.append(
                    f"- {row['type']}, {what}: " + "; ".join(f"`{each}`" for each in row["oracle"][what])
                )
        if "oracle" in row and not roles_agree(row):
            lines.append(f"  - {EXPLAINED.get(row['type'], 'not explained')}")
    return lines or ["Nowhere."]


def _exclusions(rows: list[Row]) -> list[str]:
    """Returns one line for each reason, with the types and the names that it leaves out."""
    by_reason: defaultdict[str, dict[str, list[str]]] = defaultdict(dict)
    for row in rows:
        for line in row.get("oracle", {}).get("excluded", ()):
            role, name, reason = line.split(": ", 2)
            by_reason[reason].setdefault(row["type"], []).append(f"`{role}: {name}`")
    lines: list[str] = []
    for reason, types in sorted(by_reason.items()):
        lines += [f"- {reason} ({len(types)} types)"]
        lines += [f"  - {kind}: {'; '.join(names)}" for kind, names in types.items()]
    return lines or ["Nothing."]
