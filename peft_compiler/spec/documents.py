"""`Document`: what a user wrote, as plain data that knows where each part of it stands."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from typing_extensions import override

Path = tuple[str | int, ...]
"""Keys and indices that lead to a part of a document, such as `("rules", 0, "use", "r")`."""


@dataclass(frozen=True, slots=True, order=True)
class Mark:
    """Where a piece of text stands: line and column from 1, and its length."""

    line: int
    column: int
    length: int = 1


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a document, and where: a mark in its text or a path in its data."""

    message: str
    path: Path = ()
    mark: Mark | None = None


@dataclass(frozen=True)
class Document(ABC):
    """Plain data with the place of each part.

    Attributes:
        name: What it is called in messages.
        data: Dicts, lists and scalars.
        values: Where the value at each path stands.
        keys: Where the key at the end of each path stands.
        problems: What was found wrong before the data could be looked at.
    """

    name: str
    data: Any
    values: Mapping[Path, Mark] = field(default_factory=dict[Path, Mark])
    keys: Mapping[Path, Mark] = field(default_factory=dict[Path, Mark])
    problems: tuple[Problem, ...] = ()

    @abstractmethod
    def show(self, problem: Problem) -> str:
        """Returns a problem together with its place."""

    def path_of(self, location: tuple[str | int, ...]) -> Path:
        """Returns the path of what a validator calls `location`.

        A validator also names the member of a union that it tried, and keys that are
        missing. Both lead nowhere in the data and are left out.
        """
        path: list[str | int] = []
        here = self.data
        for step in location:
            try:
                here = here[step]
            except (KeyError, IndexError, TypeError):
                continue
            path.append(step)
        return tuple(path)

    def mark_of(self, path: Path, at_key: bool = False) -> Mark | None:
        """Returns where `path`, or the nearest part around it, stands in the text."""
        if at_key and path in self.keys:
            return self.keys[path]
        around = (path[:length] for length in range(len(path), -1, -1))
        return next((self.values[part] for part in around if part in self.values), None)


class Dictionary(Document):
    """Data that came from Python: a place is the way to it."""

    @override
    def show(self, problem: Problem) -> str:
        way = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in problem.path)
        return f"{way.removeprefix('.')}: {problem.message}" if way else problem.message
