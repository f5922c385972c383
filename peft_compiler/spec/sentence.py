"""The sentence language: `LoRA r=8 on q,v; adapters after FFN; deep prompts on every layer`.

A sentence becomes the same plain data that a file holds. What a word or number may be is
decided afterwards, once, for both.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lark import Token, Tree
from lark.exceptions import UnexpectedInput
from typing_extensions import override

from peft_compiler.methods import Method
from peft_compiler.spec.documents import Document, Mark, Path, Problem
from peft_compiler.spec.grammar import explain, method_names, parse, without_comment

STATEMENT = re.compile(r'(?:"(?:\\.|[^"\\\n])*"|#[^\n]*|[^;\n])+')
ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"'}
WIDEST = 100
"""Characters of a line that are shown around a problem."""
NAMING = ("on", "after", "at", "to")
"""Prepositions after which `cross attention` names the place, and not only its kind."""

Node = Tree[Token]


@dataclass(frozen=True)
class Sentence(Document):
    """A sentence: a place is a caret under it."""

    text: str = ""

    @override
    def show(self, problem: Problem) -> str:
        if problem.mark is None:
            return problem.message
        line = self.text.split("\n")[problem.mark.line - 1].rstrip()
        start = max(0, problem.mark.column - 1 - WIDEST // 2) if len(line) > WIDEST else 0
        # Tabs are kept so that the caret stands where the terminal puts the word.
        margin = re.sub(r"[^\t]", " ", line[start : problem.mark.column - 1])
        length = min(problem.mark.length, WIDEST // 2)
        return f"{problem.message}\n  {line[start : start + WIDEST]}\n  {margin}{'^' * length}"


def read_sentence(text: str) -> Sentence:
    """Returns the data of a sentence, together with all that its grammar does not allow."""
    reader = _Reader(text)
    for statement in STATEMENT.finditer(text):
        reader.read(statement[0], statement.start())
    data: dict[str, Any] = {"rules": reader.rules, "train": reader.train}
    return Sentence("the sentence", data, reader.values, reader.keys, tuple(reader.problems), text)


class _Reader:
    """Collects rules, where each part of them stands, and problems."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.rules: list[dict[str, Any]] = []
        self.train: list[str] = []
        self.values: dict[Path, Mark] = {}
        self.keys: dict[Path, Mark] = {}
        self.problems: list[Problem] = []
        self.offset = 0

    def read(self, statement: str, offset: int) -> None:
        """Adds what one statement says; an empty one says nothing."""
        self.offset = offset
        if not without_comment(statement).strip():
            return
        try:
            tree = parse(statement)
            if tree.data == "rule":
                self.rules.append(self.rule(tree, ("rules", len(self.rules))))
            else:
                self.train += self.parts(tree)
        except UnexpectedInput as error:
            message, start, length = explain(statement, error)
            self.problems.append(Problem(message, mark=self.mark(start, start + length)))
        except RecursionError:
            self.problems.append(Problem("found too many parts within parts", mark=self.mark(0, 1)))

    def parts(self, tree: Node) -> list[str]:
        """Returns the parts of the base to train."""
        for index, part in enumerate(tree.children, start=len(self.train)):
            self.values["train", index] = self.mark_of(part)
        return [_value(part.children[0]) for part in tree.children]

    def rule(self, tree: Node, path: Path) -> dict[str, Any]:
        """Returns the data of a rule."""
        method_token, *parts = tree.children
        method = method_names()[_known_name(method_token)]
        rule: dict[str, Any] = {"use": {"kind": method.model_fields["kind"].default}}
        self.values[path] = self.mark_of(tree)
        self.values[*path, "use"] = self.mark_of(method_token)
        selecting = [part for part in parts if part.data in ("clause", "exception")]
        if selecting:
            rule["where"] = self.selector(selecting, (*path, "where"))
        for part in parts:
            if part.data == "setting":
                self.setting(part, method, rule["use"], (*path, "use"))
            elif part.data == "expect":
                rule["expect"] = int(part.children[0])
                self.values[*path, "expect"] = self.mark_of(part.children[0])
        return rule

    def setting(self, tree: Node, method: type[Method], use: dict[str, Any], path: Path) -> None:
        """Adds one setting to the data of a method."""
        word, value = tree.children
        name = _field_name(str(word), method)
        inner = (*path, name)
        if name in use:
            message = f"found '{word}' twice in one rule; keep one"
            self.problems.append(Problem(message, inner, self.mark_of(word)))
            return
        self.keys[inner] = self.mark_of(word)
        self.values[inner] = self.mark_of(value)
        use[name] = _value(value)

    def selector(self, parts: list[Any], path: Path) -> dict[str, Any]:
        """Returns the data of criteria, clauses and an exception that must hold together."""
        where: dict[str, Any] = {}
        for part in parts:
            for key, node, value in self.criteria(part, path):
                if key in where:
                    told = f"found a second choice of `{key}`; join both with `,`, or write `(...) and (...)`"
                    self.problems.append(Problem(told, (*path, key), self.mark_of(node)))
                where[key] = value
                self.values[*path, key] = self.mark_of(node)
        return where

    def criteria(self, part: Node, path: Path) -> Iterator[tuple[str, Any, Any]]:
        """Yields the key, the place and the value of each criterion that a part states."""
        if part.data == "clause":
            preposition, criterion = part.children
            if criterion.data == "attention" and preposition.lower() in NAMING:
                yield "role", criterion, ["attention"]
            yield from self.criteria(criterion, path)
        elif part.data == "exception":
            yield "not", part, self.selector(part.children[1].children, (*path, "not"))
        elif part.data in ("both", "either"):
            key = "and" if part.data == "both" else "or"
            groups = [group.children[0].children for group in part.children]
            yield key, part, [self.selector(each, (*path, key, index)) for index, each in enumerate(groups)]
        elif part.data == "group":
            for inner in part.children[0].children:
                yield from self.criteria(inner, path)
        elif part.data == "layers":
            yield "layers", part, _layers(part)
        else:
            key = {"roles": "role", "towers": "tower"}.get(part.data, str(part.data))
            words = [_value(child) for child in part.children]
            yield key, part, words if key in ("role", "tower") else words[0]

    def mark_of(self, part: Any) -> Mark:
        """Returns where a token or tree stands."""
        if isinstance(part, Token):
            return self.mark(part.start_pos or 0, part.end_pos or 0)
        return self.mark(part.meta.start_pos, part.meta.end_pos)

    def mark(self, start: int, end: int) -> Mark:
        before = self.text[: self.offset + start]
        column = len(before) - (before.rfind("\n") + 1) + 1
        return Mark(before.count("\n") + 1, column, max(end - start, 1))


def _known_name(token: Any) -> str:
    words = re.sub(r"\s+", " ", token.lower())
    names = {name.lower(): name for name in method_names()}
    return names[words] if words in names else names[words.removesuffix("s")]


def _field_name(word: str, method: type[Method]) -> str:
    plain = word.lower()
    return method.spoken_fields.get(plain, plain)


def _layers(tree: Node) -> Any:
    layers = [child for child in tree.children if isinstance(child, Tree)]
    if layers:
        return [_layer(layer.children) for layer in layers]
    return _layer(tree.children) if tree.children else "all"


def _layer(tokens: list[Any]) -> str:
    words = " ".join(tokens)
    return f"every {words}" if tokens[0].type == "ORDINAL" else words


def _value(node: Any) -> Any:
    """Returns the plain value of a token, list or table."""
    if isinstance(node, Tree):
        present = [child for child in node.children if child is not None]
        if node.data == "list":
            return [_value(child) for child in present]
        return {_value(entry.children[0]): _value(entry.children[1]) for entry in present}
    if node.type == "STRING":
        return re.sub(r"\\(.)", lambda found: ESCAPES.get(found[1], found[0]), node[1:-1])
    if node.type == "NUMBER":
        return int(node) if re.fullmatch(r"[+-]?\d+", node) else float(node)
    words = {"true": True, "false": False, "none": None}
    return words.get(node.lower(), str(node)) if node.type == "WORD" else str(node)
