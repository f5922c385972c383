"""What a validator found wrong, in the words and at the places of what the user wrote."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ValidationError

from peft_compiler.errors import SpecError
from peft_compiler.methods import Method
from peft_compiler.registering import kind_of, known_methods
from peft_compiler.spec.documents import Document, Mark, Problem
from peft_compiler.spec.recipes import Expansion, expanded
from peft_compiler.spec.spec import Rule, Spec, Where
from peft_compiler.spec.terms import did_you_mean, one_of


def validated(document: Document) -> Spec:
    """Returns the spec that a document holds.

    Raises:
        SpecError: Listing every problem, in the order of the text.
    """
    spec = None
    expansion = expanded(document)
    problems = [
        *document.problems,
        *(replace(problem, mark=document.mark_of(problem.path)) for problem in expansion.problems),
    ]
    try:
        spec = Spec.model_validate(expansion.data)
    except ValidationError as error:
        problems += _problems(document, expansion, error)
    if problems or spec is None:
        # What has no place keeps its turn: sorting is stable.
        problems.sort(key=lambda problem: problem.mark or Mark(0, 0))
        shown = dict.fromkeys(map(document.show, problems))
        raise SpecError(f"{document.name} is not a valid spec", shown)
    return spec


def _problems(document: Document, expansion: Expansion, error: ValidationError) -> Iterator[Problem]:
    known = {problem.path for problem in (*document.problems, *expansion.problems)}
    for detail in error.errors(include_url=False):
        location = detail["loc"]
        path = document.path_of(expansion.origin_of(location))
        if path in known:
            continue  # What could not be read is missing or empty: that is no problem of its own.
        at_key = detail["type"] == "extra_forbidden"
        yield Problem(_message(detail), path, document.mark_of(path, at_key))


def _message(detail: Any) -> str:
    """Returns what was found, what was expected and what to do, for one pydantic error."""
    location, found = detail["loc"], detail["input"]
    name = _name(location)
    match detail["type"]:
        case "extra_forbidden":
            keys = _keys_at(location[:-1])
            expected = f", expected {one_of(dict.fromkeys(keys.values()))}" if keys else ""
            return f"unknown key {name}{expected}{did_you_mean(str(location[-1]), keys)}"
        case "missing":
            return f"key {name} is missing; add it"
        case "union_tag_invalid":
            kind = str(detail["ctx"]["tag"])
            kinds = list(map(kind_of, known_methods()))
            return f"unknown method '{kind}', expected {one_of(kinds)}{did_you_mean(kind, kinds)}"
        case "union_tag_not_found" | "model_attributes_type":
            return f"{name} is no method; write its name, or `{{kind: lora}}` and its settings"
        case "value_error":
            return str(detail["ctx"]["error"])
        case "model_type" | "dict_type":
            return f"{name} is {_shown(found)}, expected keys and values"
        case "tuple_type":
            return f"{name} is {_shown(found)}, expected a list"
        case "too_short":
            context = detail["ctx"]
            return f"{name} has {context['actual_length']} items, expected at least {context['min_length']}"
        case "string_too_short":
            return f"{name} is {_shown(found)}, expected a text that is not empty"
        case "literal_error" | "enum" if isinstance(found, str):
            allowed = re.findall(r"'([^']*)'", detail["ctx"]["expected"])
            return f"{name} is {_shown(found)}, {_expected(detail['msg'])}{did_you_mean(found, allowed)}"
        case _:
            return f"{name} is {_shown(found)}, {_expected(detail['msg'])}"


def _name(location: tuple[str | int, ...]) -> str:
    """Returns the last key of a location and the indices after it."""
    if not location:
        return "the spec"
    *before, last = location
    if isinstance(last, str) or not before:
        return f"'{last}'"
    return f"{_name(tuple(before))[:-1]}[{last}]'"


def _expected(message: str) -> str:
    rest = re.split(r", (?:unable|got) ", message)[0]
    for start in ("Input should be ", "Input should "):
        if rest.startswith(start):
            return f"expected {rest.removeprefix(start)}"
    return rest[0].lower() + rest[1:]


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, str | int | float | bool):
        text = repr(value)
        return text if len(text) <= 40 else f"{text[:37]}..."
    if isinstance(value, Mapping):
        return "a mapping"
    return "nothing" if value is None else f"of type {type(value).__name__}"


def _keys_at(location: tuple[str | int, ...]) -> dict[str, str]:
    """Returns the keys that may stand at a location by each word for them; none where no model says."""
    model: type[BaseModel] | None = Spec
    if location and location[0] == "rules":
        model = Rule
    if "where" in location:
        model = Where
    if "use" in location:
        kinds = {kind_of(method): method for method in known_methods()}
        after = location[location.index("use") + 1 :]
        model = kinds.get(str(after[0])) if len(after) == 1 else None
    if model is None:
        return {}
    names = [str(field.validation_alias or name) for name, field in model.model_fields.items()]
    spoken: Mapping[str, str] = model.spoken_fields if issubclass(model, Method) else {}
    return {name: name for name in names if name != "kind"} | dict(spoken)
