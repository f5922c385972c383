"""The words for roles: what a user may write, and the roles that each stands for."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

from peft_compiler.site import SHORT_NAMES, Role

TERMS: Mapping[str, frozenset[Role]] = {role.value: frozenset({role}) for role in Role} | dict(SHORT_NAMES)
"""Short names and full names of roles; where both are spelt alike, the short name counts."""

ALSO_CALLED: Mapping[str, str] = {
    "query": "q",
    "queries": "q",
    "key": "k",
    "value": "v",
    "output": "o",
    "feed forward": "ffn",
    "feed-forward": "ffn",
    "mlp": "ffn",
    "layer norm": "norm",
    "layernorm": "norm",
}
"""Further words, and the term that a spec holds instead of each."""


def term_of(word: str) -> str | None:
    """Returns the term that `word` means, whatever its case and number, or None.

    >>> term_of("Queries"), term_of("attention.query"), term_of("norms"), term_of("qq")
    ('q', 'attention.query', 'norm', None)
    """
    plain = re.sub(r"\s+", " ", word.strip().lower())
    for spelling in (plain, plain.removesuffix("s")):
        if spelling in TERMS:
            return spelling
        if spelling in ALSO_CALLED:
            return ALSO_CALLED[spelling]
    return None


def split_words(value: object) -> object:
    """Returns the comma-separated words of a string as a list; anything else as it is.

    >>> split_words("q, v")
    ['q', 'v']
    """
    return [word.strip() for word in value.split(",")] if isinstance(value, str) else value


def did_you_mean(word: str, candidates: Mapping[str, str] | Sequence[str]) -> str:
    """Returns `; did you mean '...'?` for the candidate that `word` nearly spells, else nothing.

    Of a mapping, the keys are the spellings and the values what is suggested.

    >>> did_you_mean("qury", ["query", "key"]), did_you_mean("rnk", {"rank": "r"})
    ("; did you mean 'query'?", "; did you mean 'r'?")
    """
    close = difflib.get_close_matches(word.lower(), candidates, n=1)
    if not close:
        return ""
    return f"; did you mean '{candidates[close[0]] if isinstance(candidates, Mapping) else close[0]}'?"


def one_of(names: Iterable[str]) -> str:
    """Returns names as English: `a, b or c`.

    >>> one_of(["a", "b", "c"])
    'a, b or c'
    """
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
