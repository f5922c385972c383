"""Results of runs, kept as lines of JSON: what is there is not run again."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Key = Mapping[str, Any]
"""What was run: names, seeds and settings as plain data."""


class Results:
    """The results in a file, in the order in which they came.

    Args:
        file: Lines of JSON; it may not exist yet.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        text = file.read_text() if file.is_file() else ""
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]

    def of(self, **key: Any) -> list[dict[str, Any]]:
        """Returns every result whose run had these settings."""
        return [line for line in self.lines if key.items() <= line.items()]

    def get(self, key: Key, run: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Returns the result of what `key` names, of a run before or of `run`, whose result is kept."""
        if found := self.of(**key):
            return found[0]
        line = {**key, **run()}
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(line, flush=True)
        self.lines.append(line)
        return line
