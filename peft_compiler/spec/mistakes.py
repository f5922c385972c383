"""What is said about a word of a sentence that cannot stand where it stands."""

import re
from collections.abc import Mapping, Sequence

from lark import Token
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from peft_compiler.registering import known_methods
from peft_compiler.site import Tower
from peft_compiler.spec.grammar import STRING, field_names, method_names, recipe_words, without_comment
from peft_compiler.spec.terms import ALSO_CALLED, TERMS, did_you_mean, one_of

KEYWORDS: Mapping[str, tuple[str, ...]] = {
    "PREPOSITION": ("on", "after", "of", "in", "at"),
    "EXCEPT": ("except",),
    "END": ("first", "last"),
    "KIND": ("self", "cross", "any"),
    "_TRAIN": ("train",),
    "_DTYPE": ("dtype",),
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
    "STRING": "text in quotes",
    "WORD": "a word",
    "$END": "the end",
}
"""What the other terminals are called in messages; those left out are never worth naming."""


PLACE = (
    "a place, such as `q,v`, `all linear`, `the last 4 layers`, `encoder`, `cross attention` "
    'or a path in quotes like `"model.layers.*"`'
)
WORD = re.compile(rf"{STRING}|[\w.-]+|\S|")


def explain(statement: str, error: UnexpectedInput) -> tuple[str, int, int]:
    """Returns what is wrong with a statement, and the offset and length of the place."""
    token: object = getattr(error, "token", None)
    at_end = isinstance(token, Token) and token.type == "$END"
    start = len(without_comment(statement).rstrip()) if at_end else error.pos_in_stream or 0
    rest = statement[start:]
    if rest.startswith('"') and not re.match(STRING, rest):
        return 'found a quote that is never closed; close it with `"`', start, 1
    if start > 0 and (method := _leading_method(rest)):
        return f"found '{method}' within a rule; write `;` before it to begin another", start, len(method)
    expected = _expected_terminals(error)
    vocabulary = _vocabulary(statement)
    found, suggestion = _nearest(
        rest, [word for terminal in expected for word in vocabulary.get(terminal, ())]
    )
    shown = found if len(found) <= 40 else f"{found[:37]}..."
    what = f"'{shown}'" if found else "the end"
    return f"found {what}, expected {_allowed(expected, vocabulary)}{suggestion}", start, max(len(found), 1)


def _leading_method(text: str) -> str:
    """Returns the name of a method or recipe that a text begins with, as it is written there."""
    names = sorted((*method_names(), *recipe_words()), key=len, reverse=True)
    found = (re.match(rf"{re.escape(name)}s?(?![\w.])", text, re.IGNORECASE) for name in names)
    return next((match[0] for match in found if match), "")


def _expected_terminals(error: UnexpectedInput) -> set[str]:
    if isinstance(error, UnexpectedToken):
        return set(error.accepts or error.expected)
    return set(error.allowed or ()) if isinstance(error, UnexpectedCharacters) else set()


def _vocabulary(statement: str) -> Mapping[str, Sequence[str]]:
    """Returns the words of each terminal; settings are those of the method that the statement names."""
    name = _leading_method(statement.lstrip()).lower()
    methods = [
        method
        for spoken, method in method_names().items()
        if spoken.lower() in (name, name.removesuffix("s"))
    ]
    return {
        "METHOD": tuple(method_names()),
        "RECIPE": tuple(recipe_words()),
        "FIELD": field_names(methods or known_methods()),
        "ROLE": (*TERMS, *ALSO_CALLED),
        "TOWER": tuple(Tower),
        **KEYWORDS,
    }


def _allowed(expected: set[str], vocabulary: Mapping[str, Sequence[str]]) -> str:
    """Returns what may stand here, in words; long vocabularies by examples."""
    if expected >= {"ROLE", "TOWER", "STRING"}:
        return PLACE
    listed: list[str] = []
    if "METHOD" in expected:
        listed.append(f"a method ({', '.join(method.spoken[0] for method in known_methods())})")
    if "RECIPE" in expected:
        listed.append("a recipe such as houlsby, mam or compacter")
    if "FIELD" in expected:
        listed.append(f"a setting ({', '.join(vocabulary['FIELD'])})")
    if "ROLE" in expected:
        listed.append("a role such as q, v, ffn or linear")
    if "TOWER" in expected:
        listed.append(f"a tower ({', '.join(Tower)})")
    listed += [f"`{word}`" for terminal, words in KEYWORDS.items() if terminal in expected for word in words]
    return one_of([*listed, *(sign for terminal, sign in SIGNS.items() if terminal in expected)])


def _nearest(rest: str, words: list[str]) -> tuple[str, str]:
    """Returns the words at the start of `rest` that were meant as one, and what they nearly spell."""
    for size in (3, 2):
        several = re.match(rf"[a-z][\w.-]*(?:\s+[\w.-]+){{{size - 1}}}", rest, re.IGNORECASE)
        candidates = [word for word in words if len(word.split()) == size]
        if several and (suggestion := did_you_mean(several[0].removesuffix("s"), candidates)):
            return several[0], suggestion
    found = WORD.match(rest)
    single = found[0] if found else ""
    return single, did_you_mean(single, words)
