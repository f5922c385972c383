"""Graphs as Python that a person can read."""

import re
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from itertools import groupby

_SHORTER = (
    (re.compile(r";  [\w = ]+ = None$", re.MULTILINE), ""),
    (re.compile(r"^( +)\w+ = (peft_compiler_lowering_guards_)", re.MULTILINE), r"\1\2"),
    (re.compile(r"\bpeft_compiler_lowering_(guards|prompted(_input)?|rows|extend_attention|values)_"), "pc."),
    (re.compile(r"\b(transformers|torch)_(\w+?_)*(?=[A-Z])"), ""),
    (re.compile(r"\btorch\._C\._nn\."), "functional."),
)
"""Generated code frees each value after its last use and spells names out: right to run, tiring to read."""


@dataclass(frozen=True, slots=True)
class Section:
    """The code of one rewritten module.

    Attributes:
        path: Where the module is.
        title: Name of its original class.
        alike: Equal for modules that were rewritten alike.
        code: Source of its forward.
    """

    path: str
    title: str
    alike: Hashable
    code: str


def readable(sections: Iterable[Section]) -> str:
    """Returns the code of all `sections`; modules that were rewritten alike appear once."""
    ordered = list(sections)
    first = {section.alike: index for index, section in reversed(list(enumerate(ordered)))}
    grouped = groupby(
        sorted(ordered, key=lambda section: first[section.alike]), key=lambda section: section.alike
    )
    return "\n\n\n".join(_text(list(group)) for _, group in grouped)


def _text(group: list[Section]) -> str:
    where = group[0].path or "the model itself"
    if len(group) > 1:
        where += f" and {len(group) - 1} more, to {group[-1].path}"
    code = group[0].code.strip()
    for pattern, short in _SHORTER:
        code = pattern.sub(short, code)
    return f"# {group[0].title}: {where}\n{code}"
