"""The parser of one statement, and what it says about a word that it cannot read."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from peft_compiler.methods import METHODS, Method
from peft_compiler.site import Tower
from peft_compiler.spec.terms import ALSO_CALLED, TERMS, did_you_mean, one_of

GRAMMAR = Path(__file__).with_name("sentence.lark")

KEYWORDS: Mapping[str, tuple[str, ...]] = {
    "PREPOSITION": ("on", "after", "of", "in", "at"),
    "EXCEPT": ("except",),
    "END": ("first", "last"),
    "KIND": ("self", "cross", "any"),
    "_TRAIN": ("train",),
    "_EXPECT": ("expect",),
    "_ALL": ("all", "every"),
    "_LAYERS": ("layers",),
    "_ATTENTION": ("attention",),
    "_TYPE": ("type",),
    "_AND": ("and",),
    "_OR": ("or",),
}
"""Words of the language itself that are suggested and listed, by terminal."""

SIGNS: Mapping[str, str] = {
    "EQUAL": "`=`",
    "RPAR": "`)`",
    "COLON": "`:`",
    "LSQB": "`[`",
    "RSQB": "`]`",
    "LBRACE": "`{`",
    "RBRACE": "`}`",
    "_LIST": "`,`",
    "NUMBER": "a number",
    "INT": "a whole number",
    "RANGE": "a range such as `0-5`",
    "ORDINAL": "a step such as `2nd`",
    "STRING": 'a path in quotes, such as `"model.layers.*"`',
    "WORD": "a word",
    "$END": "the end",
}
"""What the other terminals are called in messages; those left out are never worth naming."""


def method_names() -> dict[str, type[Method]]:
    """Returns each method by everything that a sentence may call it."""
    return {name: method for method in METHODS for name in method.spoken}


def field_names() -> list[str]:
    """Returns what the fields of all methods are called in sentences."""
    names = [name for method in METHODS for name in (*method.model_fields, *method.spoken_fields)]
    return [name for name in dict.fromkeys(names) if name != "kind"]


@cache
def parser() -> Lark:
    """Returns the parser of one statement."""
    words = {
        "METHOD": method_names(),
        "FIELD": field_names(),
        "ROLE": (*TERMS, *ALSO_CALLED),
        "TOWER": tuple(Tower),
    }
    plural = {"METHOD": "s?", "FIELD": "", "ROLE": "s?", "TOWER": "s?"}
    terminals = [
        f"{name}.2: /(?:{_alternatives(known)}){plural[name]}(?!\\w)/i" for name, known in words.items()
    ]
    grammar = "\n".join([GRAMMAR.read_text(encoding="utf-8"), *terminals])
    return Lark(grammar, parser="lalr", propagate_positions=True)


def _alternatives(words: Iterable[str]) -> str:
    # The longest first: "attention.query" is not "attention" and something after it.
    ordered = sorted(words, key=lambda word: (-len(word), word))
    return "|".join(re.escape(word).replace(r"\ ", r"\s+") for word in ordered)


def without_comment(statement: str) -> str:
    """Returns a statement up to its comment."""
    found = re.match(r'(?:"(?:\\.|[^"\\])*"|[^#])*', statement)
    return found[0] if found else statement


@dataclass(frozen=True, slots=True)
class Phrase:
    """A piece of a statement: a word, or what a rule of the grammar made of several.

    Attributes:
        name: The terminal or the rule.
        text: As it was written.
        start: Offset of its first character in the statement.
        parts: What it is made of; a word has none.
    """

    name: str
    text: str
    start: int
    parts: tuple["Phrase", ...] = ()


def parse(statement: str) -> Phrase:
    """Returns one statement in phrases.

    Raises:
        UnexpectedInput: If it is none; `explain` says why.
    """
    tree = parser().parse(statement)  # pyright: ignore[reportUnknownMemberType]: lark leaves the text's type open
    return _phrase(tree, statement)


def _phrase(branch: Tree[Token] | Token, statement: str) -> Phrase:
    if isinstance(branch, Token):
        return Phrase(branch.type, str(branch), branch.start_pos or 0)
    start, end = branch.meta.start_pos, branch.meta.end_pos
    # Lark leaves None where an optional part is absent.
    parts = tuple(_phrase(child, statement) for child in branch.children if child is not None)  # pyright: ignore[reportUnnecessaryComparison]
    return Phrase(str(branch.data), statement[start:end], start, parts)


def explain(statement: str, error: UnexpectedInput) -> tuple[str, int, int]:
    """Returns what is wrong with a statement, and the offset and length of the place."""
    expected = _expected_terminals(error)
    token: object = getattr(error, "token", None)
    at_end = isinstance(token, Token) and token.type == "$END"
    start = len(without_comment(statement).rstrip()) if at_end else error.pos_in_stream or 0
    rest = statement[start:]
    if rest.startswith('"'):
        return 'found a quote that is never closed; close it with `"`', start, 1
    words = [word for terminal in expected for word in _words(terminal)]
    found, suggestion = _nearest(rest, words)
    allowed = [*_listed(expected), *(SIGNS[terminal] for terminal in SIGNS if terminal in expected)]
    shown = found if len(found) <= 40 else f"{found[:37]}..."
    what = f"'{shown}'" if found else "the end"
    return f"found {what}, expected {one_of(allowed)}{suggestion}", start, max(len(found), 1)


def _expected_terminals(error: UnexpectedInput) -> set[str]:
    if isinstance(error, UnexpectedToken):
        return set(error.accepts or error.expected)
    return set(error.allowed or ()) if isinstance(error, UnexpectedCharacters) else set()


def _words(terminal: str) -> tuple[str, ...]:
    known: dict[str, Iterable[str]] = {
        "METHOD": method_names(),
        "FIELD": field_names(),
        "ROLE": (*TERMS, *ALSO_CALLED),
        "TOWER": tuple(Tower),
        **KEYWORDS,
    }
    return tuple(known.get(terminal, ()))


def _listed(expected: set[str]) -> list[str]:
    """Returns what may stand here, in words; long vocabularies by examples."""
    listed: list[str] = []
    if "METHOD" in expected:
        listed.append(f"a method ({', '.join(method.spoken[0] for method in METHODS)})")
    if "FIELD" in expected:
        listed.append(f"a setting ({', '.join(field_names())})")
    if expected >= {"ROLE", "TOWER", "_LAYERS"}:
        return ["a place, such as `q,v`, `all linear`, `the last 4 layers`, `encoder`, `cross attention`"]
    if "ROLE" in expected:
        listed.append("a role such as q, v, ffn or linear")
    if "TOWER" in expected:
        listed.append(f"a tower ({', '.join(Tower)})")
    words = [word for terminal, words in KEYWORDS.items() if terminal in expected for word in words]
    return [*listed, *(f"`{word}`" for word in words)]


def _nearest(rest: str, words: list[str]) -> tuple[str, str]:
    """Returns the words at the start of `rest` that were meant as one, and what they nearly spell."""
    found = re.match(r"[\w.-]+|\S|", rest)
    single = found[0] if found else ""
    for size in (3, 2):
        several = re.match(rf"[\w.-]+(?:\s+[\w.-]+){{{size - 1}}}", rest)
        candidates = [word for word in words if len(word.split()) == size]
        if several and (suggestion := did_you_mean(several[0].removesuffix("s"), candidates)):
            return several[0], suggestion
    return single, did_you_mean(single, words)
