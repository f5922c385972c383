"""YAML and JSON text to a `Document` that knows the line and column of each key and value.

Both are read by the same parser. It resolves no tags and follows no aliases, so a small
file cannot stand for large data, and nothing but scalars, lists and mappings comes out.
"""

import json
import math
from collections.abc import Iterator
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, NodeEvent, ScalarEvent
from typing_extensions import override

from peft_compiler.errors import SpecError
from peft_compiler.spec.documents import Document, Mark, Path, Problem

DEEPEST = 24
"""How far lists and mappings may be nested."""

PLAIN_SCALARS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null")}


class File(Document):
    """A file: a place is its name, line and column."""

    @override
    def show(self, problem: Problem) -> str:
        mark = problem.mark or Mark(1, 1)
        return f"{self.name}:{mark.line}:{mark.column}: {problem.message}"


def read_yaml(text: str, name: str) -> File:
    """Returns the data of YAML text.

    Raises:
        SpecError: If it is not YAML, or YAML that no spec needs: tags, aliases, deep nesting.
    """
    try:
        problems = tuple(_unwanted(text))
        root: Any = None if problems else _parser().compose(text)
    except YAMLError as error:
        problems, root = (_syntax_problem(error),), None
    if problems:
        raise _not_readable(name, problems)
    if root is None:
        problem = Problem("the file is empty; write a rule such as `rules: [{use: lora}]`")
        raise _not_readable(name, (problem,))
    reader = _Nodes()
    data = reader.value(root, ())
    return File(name, data, reader.values, reader.keys, tuple(reader.problems))


def read_json(text: str, name: str) -> File:
    """Returns the data of JSON text.

    Raises:
        SpecError: If it is not JSON, or deeply nested.
    """
    try:
        json.loads(text, parse_int=str)
    except json.JSONDecodeError as error:
        problem = Problem(f"not JSON: {error.msg.lower()}", mark=Mark(error.lineno, error.colno))
        raise _not_readable(name, (problem,)) from None
    except RecursionError:
        raise _not_readable(name, (Problem(f"nested more than {DEEPEST} levels deep"),)) from None
    # Valid JSON is YAML but for tabs, which can only stand between tokens here.
    return read_yaml(text.replace("\t", " "), name)


def _parser() -> Any:
    # Untyped, because the library leaves most of its types open.
    return YAML(typ="safe", pure=True)


def _not_readable(name: str, problems: tuple[Problem, ...]) -> SpecError:
    file = File(name, None)
    return SpecError(f"{name} cannot be read", map(file.show, problems))


def _syntax_problem(error: Any) -> Problem:
    if not isinstance(error, MarkedYAMLError):
        return Problem(f"not YAML: {getattr(error, 'reason', error)}")
    said: Any = error
    where = said.problem_mark or said.context_mark
    reason = ", ".join(filter(None, (said.context, said.problem)))
    return Problem(f"not YAML: {reason}", mark=Mark(where.line + 1, where.column + 1) if where else None)


def _unwanted(text: str) -> Iterator[Problem]:
    depth = 0
    for event in _parser().parse(text):
        kind: type[object] = event.__class__
        mark = Mark(event.start_mark.line + 1, event.start_mark.column + 1)
        if kind is AliasEvent:
            yield Problem(f"found alias '*{event.anchor}'; write out what it stands for", mark=mark)
        elif issubclass(kind, NodeEvent) and event.anchor is not None:
            yield Problem(f"found anchor '&{event.anchor}'; a spec has none, remove it", mark=mark)
        if issubclass(kind, ScalarEvent | CollectionStartEvent) and event.tag is not None:
            yield Problem(f"found tag '{event.tag}'; a spec has none, remove it", mark=mark)
        depth += issubclass(kind, CollectionStartEvent) - issubclass(kind, CollectionEndEvent)
        if depth > DEEPEST:
            yield Problem(f"nested more than {DEEPEST} levels deep", mark=mark)
            return


class _Nodes:
    """Turns YAML nodes into data, noting where each part stands."""

    def __init__(self) -> None:
        self.values: dict[Path, Mark] = {}
        self.keys: dict[Path, Mark] = {}
        self.problems: list[Problem] = []
        self.scalars = _parser().constructor

    def value(self, node: Any, path: Path) -> Any:
        """Returns the data of a node, and notes its place."""
        self.values[path] = _mark(node)
        match node.id:
            case "mapping":
                return self.mapping(node, path)
            case "sequence":
                return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
            case _:
                return self.scalar(node, path)

    def mapping(self, node: Any, path: Path) -> dict[str, Any]:
        """Returns the data of a mapping, without keys that cannot count."""
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            mark = _mark(key_node)
            if key_node.id != "scalar":
                message = "found a key that is a list or mapping, expected a word"
                self.problems.append(Problem(message, mark=mark))
                continue
            key = str(key_node.value)
            inner = (*path, key)
            if key in data:
                first = self.keys[inner].line
                message = f"found key '{key}' twice, first in line {first}; keep one"
                self.problems.append(Problem(message, inner, mark))
                continue
            self.keys[inner] = mark
            data[key] = self.value(value_node, inner)
        return data

    def scalar(self, node: Any, path: Path) -> Any:
        """Returns the data of a scalar."""
        # What looks like a date or a merge key is only text here.
        if str(node.tag) not in PLAIN_SCALARS:
            return node.value
        try:
            value = self.scalars.construct_object(node)
        except ValueError:  # Python reads no integer of thousands of digits.
            value = math.inf
        if isinstance(value, float) and not math.isfinite(value):
            message = f"found '{node.value[:40]}', expected a finite number"
            self.problems.append(Problem(message, path, _mark(node)))
        return value


def _mark(node: Any) -> Mark:
    start, end = node.start_mark, node.end_mark
    length = end.column - start.column if end.line == start.line else 1
    return Mark(start.line + 1, start.column + 1, max(length, 1))
