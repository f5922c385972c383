"""Patterns for module paths: globs, and regular expressions between slashes."""

import re
from functools import cache


def path_matches(pattern: str, path: str) -> bool:
    """Whether `pattern` selects the module at `path`.

    A glob is read component by component: `*` and `?` stay within one, `**` stands for any
    number of them. It selects the modules that it matches and everything inside them, so
    `encoder` is the whole encoder, and `model.layers.1` is not `model.layers.10`.
    `/pattern/` is a regular expression that may match anywhere in the path.

    >>> path_matches("layers.*.mlp", "layers.3.mlp.up"), path_matches("layers.1", "layers.10")
    (True, False)
    >>> path_matches("**.up", "layers.3.mlp.up"), path_matches("/3.*up$/", "layers.3.mlp.up")
    (True, True)
    """
    compiled = compiled_pattern(pattern)
    if is_expression(pattern):
        return compiled.search(path) is not None
    # Every component ends in a dot, so a match of a prefix is a match of whole components.
    return compiled.match(f"{path}." if path else "") is not None


def is_expression(pattern: str) -> bool:
    """Whether `pattern` is a regular expression between slashes."""
    return len(pattern) > 2 and pattern.startswith("/") and pattern.endswith("/")


@cache
def compiled_pattern(pattern: str) -> re.Pattern[str]:
    """Returns `pattern` as a regular expression.

    Raises:
        ValueError: If it is empty, or between slashes and no regular expression.
    """
    if not pattern:
        raise ValueError("found an empty path; expected a glob such as 'model.layers.*.mlp' or a '/regex/'")
    if not is_expression(pattern):
        return re.compile("".join(map(_component, pattern.split("."))))
    try:
        return re.compile(pattern[1:-1])
    except re.error as error:
        raise ValueError(f"found path '{pattern}', which is no regular expression: {error}") from None


def _component(glob: str) -> str:
    if glob == "**":
        return r"(?:[^.]+\.)*"
    return "".join({"*": "[^.]*", "?": "[^.]"}.get(letter, re.escape(letter)) for letter in glob) + r"\."
