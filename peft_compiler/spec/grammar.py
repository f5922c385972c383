"""The parser of one statement: the grammar in `sentence.lark` with the words of methods and roles."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lark import Lark, Token, Tree

from peft_compiler.methods import Method
from peft_compiler.registering import known_methods
from peft_compiler.site import Tower
from peft_compiler.spec.recipes import recipe_names
from peft_compiler.spec.terms import ALSO_CALLED, TERMS

GRAMMAR = Path(__file__).with_name("sentence.lark")
STRING = r'"(?:\\.|[^"\\\n])*"'
"""Pattern of text in quotes, the same as in the grammar."""

JOINED = re.compile(r"[\s_-]+")
"""What may stand between the words of a recipe's name."""


def method_names() -> dict[str, type[Method]]:
    """Returns each method by everything that a sentence may call it."""
    return {name: method for method in known_methods() for name in method.spoken}


def recipe_words() -> dict[str, str]:
    """Returns each recipe by what a sentence may call it, where no method is called that."""
    methods = {name.lower() for name in method_names()}
    spoken = {name.replace("_", " "): name for name in recipe_names()}
    return {words: name for words, name in spoken.items() if words not in methods}


def field_names(methods: Iterable[type[Method]]) -> tuple[str, ...]:
    """Returns what the fields of methods are called in sentences."""
    names = [name for method in methods for name in (*method.model_fields, *method.spoken_fields)]
    return tuple(name for name in dict.fromkeys(names) if name != "kind")


@cache
def parser(methods: tuple[type[Method], ...]) -> Lark:
    """Returns the parser of one statement where `methods` are known."""
    terminals = {
        "METHOD": f"{_alternatives(method_names())}s?",
        "ROLE": f"{_alternatives((*TERMS, *ALSO_CALLED))}s?",
        "TOWER": f"{_alternatives(Tower)}s?",
    }
    # A word ends where no letter and no dot follows: `encoder.layers` is neither a tower nor a role.
    defined = [rf"{name}.2: /{words}(?![\w.])/i" for name, words in terminals.items()]
    # A word that is also one of the language's own is not a setting: `layers=2` is, `of layers 2` a place.
    defined.append(rf"FIELD.-1: /{_alternatives(field_names(methods))}(?![\w.])/i")
    defined.append(rf"RECIPE.3: /{_recipe_pattern()}/i")
    return Lark("\n".join([GRAMMAR.read_text("utf-8"), *defined]), parser="lalr", propagate_positions=True)


def _recipe_pattern() -> str:
    recipes = recipe_words()
    begun = tuple(f"{word} " for word in recipes)
    longer = [name for name in method_names() if JOINED.sub(" ", name.lower()).startswith(begun)]
    # A method whose name goes on after a recipe's is meant: "compacter adapters". A name may end in a sign.
    methods = rf"(?!{_alternatives(longer)}s?(?![\w.]))" if longer else ""
    return methods + _alternatives(recipes, gap=JOINED.pattern) + r"(?![\w.+])"


def _alternatives(words: Iterable[str], gap: str = r"\s+") -> str:
    # The longest first: "attention.query" is not "attention" and something after it.
    ordered = sorted(words, key=lambda word: (-len(word), word))
    patterns = (gap.join(map(re.escape, word.split())) for word in ordered)
    return f"(?:{'|'.join(patterns)})"


def without_comment(statement: str) -> str:
    """Returns a statement up to its comment."""
    found = re.match(rf"(?:{STRING}|[^#])*", statement)
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
        UnexpectedInput: If it is none; `mistakes.explain` says why.
    """
    tree = parser(known_methods()).parse(statement)  # pyright: ignore[reportUnknownMemberType]: lark leaves the text's type open
    return _phrase(tree, statement)


def _phrase(branch: Tree[Token] | Token, statement: str) -> Phrase:
    if isinstance(branch, Token):
        return Phrase(branch.type, str(branch), branch.start_pos or 0)
    start, end = branch.meta.start_pos, branch.meta.end_pos
    # Lark leaves None where an optional part is absent.
    parts = tuple(_phrase(child, statement) for child in branch.children if child is not None)  # pyright: ignore[reportUnnecessaryComparison]
    return Phrase(str(branch.data), statement[start:end], start, parts)
