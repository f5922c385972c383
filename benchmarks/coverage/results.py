"""Rows of the benchmark on disk: one JSON object a line, one line a type."""

import hashlib
import json
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]


def read_rows(file: Path) -> dict[str, dict[str, Any]]:
    """Returns the last row of each type."""
    if not file.exists():
        return {}
    rows = (json.loads(line) for line in file.read_text().splitlines())
    return {row["type"]: row for row in rows}


def write_rows(file: Path, rows: dict[str, dict[str, Any]]) -> None:
    """Writes the rows, sorted by type."""
    file.write_text("".join(json.dumps(rows[name]) + "\n" for name in sorted(rows)))


def digest_of(*folders: str) -> str:
    """Returns what changes with the code in these folders of the project: rows of other code are stale."""
    digest = hashlib.sha256()
    for folder in folders:
        for source in sorted((_ROOT / folder).rglob("*.py")):
            digest.update(source.read_bytes())
    return digest.hexdigest()[:12]
