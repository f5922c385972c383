"""The sentence language: `LoRA r=8 on q,v; adapters after FFN; deep prompts on every layer`.

A sentence becomes the same plain data that a file holds. What a word or number may be is
decided afterwards, once, for both.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lark.exceptions import UnexpectedInput
from typing_extensions import override

from peft_compiler.methods import Method
from peft_compiler.spec.documents import Document, Mark, Path, Problem
from peft_compiler.spec.grammar import (
    JOINED,
    STRING,
    Phrase,
    method_names,
    parse,
    recipe_words,
    without_comment,
)
from peft_compiler.spec.mistakes import explain

STATEMENT = re.compile(rf"(?:{STRING}|#[^\n]*|[^;\n])+")
ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"'}
WIDEST = 100
"""Characters of a line that are shown around a problem."""
NAMING = ("on", "after", "at", "to")
"""Prepositions after which `cross attention` names the place, and not only its kind."""


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
    data: dict[str, Any] = {"rules": reader.rules, "train": reader.train, "dtype": reader.dtype}
    return Sentence("the sentence", data, reader.values, reader.keys, tuple(reader.problems), text)


class _Reader:
    """Collects rules, where each part of them stands, and problems."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.rules: list[dict[str, Any]] = []
        self.train: list[str] = []
        self.dtype: str | None = None
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
            phrase = parse(statement)
            if phrase.name == "rule":
                self.rules.append(self.rule(phrase, ("rules", len(self.rules))))
            elif phrase.name == "recipe":
                self.rules.append(self.recipe(phrase, ("rules", len(self.rules))))
            elif phrase.name == "train":
                self.train += self.parts_to_train(phrase)
            else:
                self.dtype = self.only_dtype(phrase)
        except UnexpectedInput as error:
            message, start, length = explain(statement, error)
            self.problems.append(Problem(message, mark=self.mark(start, length)))
        except RecursionError:
            self.problems.append(Problem("found too many parts within parts", mark=self.mark(0, 1)))

    def only_dtype(self, phrase: Phrase) -> str:
        """Returns the type of what is inserted, which is said once."""
        *_, word = phrase.parts
        if self.dtype is not None:
            message = "found a second `dtype`; all that is inserted has one, keep one"
            self.problems.append(Problem(message, ("dtype",), self.mark_of(word)))
        self.values["dtype",] = self.mark_of(word)
        return word.text

    def parts_to_train(self, phrase: Phrase) -> list[str]:
        """Returns the parts of the base to train."""
        for index, part in enumerate(phrase.parts, start=len(self.train)):
            self.values["train", index] = self.mark_of(part)
        return [_value(part.parts[0]) for part in phrase.parts]

    def rule(self, phrase: Phrase, path: Path) -> dict[str, Any]:
        """Returns the data of a rule."""
        name, *parts = phrase.parts
        method = _method(name.text)
        rule: dict[str, Any] = {"use": {"kind": method.model_fields["kind"].default}}
        self.values[path] = self.mark_of(phrase)
        self.values[*path, "use"] = self.mark_of(name)
        selecting = [part for part in parts if part.name in ("clause", "exception")]
        if selecting:
            rule["where"] = self.selector(selecting, (*path, "where"))
        for part in parts:
            if part.name == "setting":
                self.setting(part, method, rule["use"], (*path, "use"))
            elif part.name == "expect":
                rule["expect"] = int(part.parts[0].text)
                self.values[*path, "expect"] = self.mark_of(part.parts[0])
        return rule

    def recipe(self, phrase: Phrase, path: Path) -> dict[str, Any]:
        """Returns the data of a rule that uses a recipe."""
        name, *selecting = phrase.parts
        words = JOINED.sub(" ", name.text.lower())
        rule: dict[str, Any] = {"use": {"recipe": recipe_words()[words]}}
        self.values[path] = self.mark_of(phrase)
        self.values[*path, "use"] = self.mark_of(name)
        if selecting:
            rule["where"] = self.selector(selecting, (*path, "where"))
        return rule

    def setting(self, phrase: Phrase, method: type[Method], use: dict[str, Any], path: Path) -> None:
        """Adds one setting to the data of a method."""
        *_, word, value = phrase.parts
        name = method.spoken_fields.get(word.text.lower(), word.text.lower())
        inner = (*path, name)
        if name in use:
            message = f"found '{word.text}' twice in one rule; keep one"
            self.problems.append(Problem(message, inner, self.mark_of(word)))
            return
        self.keys[inner] = self.mark_of(word)
        self.values[inner] = self.mark_of(value)
        use[name] = _value(value)

    def selector(self, phrases: Sequence[Phrase], path: Path) -> dict[str, Any]:
        """Returns the data of criteria, clauses and an exception that must hold together."""
        where: dict[str, Any] = {}
        for phrase in phrases:
            for key, said, value in self.criteria(phrase, path):
                if key in where:
                    message = (
                        f"found a second choice of `{key}`; join both with `,`, or write `(...) and (...)`"
                    )
                    self.problems.append(Problem(message, (*path, key), self.mark_of(said)))
                where[key] = value
                self.values[*path, key] = self.mark_of(said)
        return where

    def criteria(self, phrase: Phrase, path: Path) -> Iterator[tuple[str, Phrase, Any]]:
        """Yields the key, the place and the value of each criterion that a phrase states."""
        match phrase.name:
            case "clause":
                preposition, criterion = phrase.parts
                if criterion.name == "attention" and preposition.text.lower() in NAMING:
                    yield "role", criterion, ["attention"]
                yield from self.criteria(criterion, path)
            case "group":
                for inner in phrase.parts[0].parts:
                    yield from self.criteria(inner, path)
            case "exception":
                yield "not", phrase, self.selector(phrase.parts[1].parts, (*path, "not"))
            case "both" | "either":
                key = "and" if phrase.name == "both" else "or"
                groups = [group.parts[0].parts for group in phrase.parts]
                data = [self.selector(group, (*path, key, index)) for index, group in enumerate(groups)]
                yield key, phrase, data
            case "layers":
                yield "layers", phrase, _layers(phrase)
            case "roles" | "towers":
                key = phrase.name.removesuffix("s")
                yield key, phrase, [word.text for word in phrase.parts]
            case key:
                yield key, phrase, _value(phrase.parts[0])

    def mark_of(self, phrase: Phrase) -> Mark:
        """Returns where a phrase stands."""
        return self.mark(phrase.start, len(phrase.text))

    def mark(self, start: int, length: int) -> Mark:
        """Returns where a piece of the present statement stands."""
        before = self.text[: self.offset + start]
        column = len(before) - (before.rfind("\n") + 1) + 1
        return Mark(before.count("\n") + 1, column, max(length, 1))


def _method(text: str) -> type[Method]:
    """Returns the method of a name, whatever its case and number."""
    words = re.sub(r"\s+", " ", text.lower())
    names = {name.lower(): method for name, method in method_names().items()}
    return names[words] if words in names else names[words.removesuffix("s")]


def _layers(phrase: Phrase) -> Any:
    items = [part for part in phrase.parts if part.name == "layer"]
    if items:
        return [_layer(item) for item in items]
    return _layer(phrase) if phrase.parts else "all"


def _layer(phrase: Phrase) -> str:
    words = " ".join(word.text for word in phrase.parts)
    return f"every {words}" if phrase.parts[0].name == "ORDINAL" else words


def _value(phrase: Phrase) -> Any:
    """Returns the plain value of a word, list or table."""
    match phrase.name:
        case "list":
            return [_value(part) for part in phrase.parts]
        case "table":
            return {_value(entry.parts[0]): _value(entry.parts[1]) for entry in phrase.parts}
        case "STRING":
            return re.sub(r"\\(.)", lambda found: ESCAPES.get(found[1], found[0]), phrase.text[1:-1])
        case "NUMBER":
            return int(phrase.text) if re.fullmatch(r"[+-]?\d+", phrase.text) else float(phrase.text)
        case "WORD":
            return {"true": True, "false": False, "none": None}.get(phrase.text.lower(), phrase.text)
        case _:
            return phrase.text
