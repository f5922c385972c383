"""Recipes: specs of published settings, by name, and what stands in their place in a document.

A rule that uses a recipe, `use: {recipe: mam}`, stands for all its rules, each narrowed by what the
rule selects, and for the parts that it trains, which stay whole. A spec holds what a recipe says,
never its name: what is written back or saved with an adapter means the same for good, whatever
becomes of the recipe.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from peft_compiler.spec.documents import Document, Problem
from peft_compiler.spec.documents import Path as Way
from peft_compiler.spec.files import read_yaml
from peft_compiler.spec.terms import did_you_mean, one_of

FOLDER = Path(__file__).parents[1] / "recipes"


@cache
def recipe_names() -> tuple[str, ...]:
    """Returns the name of every recipe."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


@cache
def recipe(name: str) -> Mapping[str, Any]:
    """Returns the plain data of the recipe of that name; not to be changed."""
    path = FOLDER / f"{name}.yaml"
    return read_yaml(path.read_text("utf-8"), str(path)).data


@dataclass(frozen=True, slots=True)
class Expansion:
    """A document's data with what recipes stand for.

    Attributes:
        data: The data.
        origins: The index in the document of the rule that each rule of `data` comes from.
        problems: What is wrong with how recipes are used.
    """

    data: Any
    origins: tuple[int, ...] = ()
    problems: tuple[Problem, ...] = ()

    def origin_of(self, location: Way) -> Way:
        """Returns where in the document something in `data` comes from."""
        match location:
            case ("rules", int() as index, *rest) if index < len(self.origins):
                return ("rules", self.origins[index], *rest)
            case _:
                return location


def expanded(document: Document) -> Expansion:
    """Returns the data of a document with the rules and parts to train that its recipes stand for."""
    data = document.data
    if not isinstance(data, Mapping) or not isinstance(data.get("rules"), list | tuple):
        return Expansion(data)
    rules: list[Any] = []
    origins: list[int] = []
    train: list[Any] = []
    problems: list[Problem] = []
    for index, rule in enumerate(data["rules"]):
        name = _recipe_of(rule)
        found = [] if name is None else list(_misuses(rule, name, ("rules", index)))
        problems += found
        if name is not None and not found:
            of_recipe = recipe(name)
            rules += [_narrowed(part, rule.get("where")) for part in of_recipe.get("rules", ())]
            train += of_recipe.get("train", ())
        elif name is None:
            rules.append(rule)
        origins += [index] * (len(rules) - len(origins))
    if train or len(rules) != len(data["rules"]):
        own = data.get("train") or []
        parts = [own] if isinstance(own, str) else list(own)
        data = {**data, "train": [*parts, *(part for part in train if part not in parts)]}
    return Expansion({**data, "rules": rules}, tuple(origins), tuple(problems))


def _recipe_of(rule: Any) -> object:
    """Returns what a rule calls its recipe, or None if it uses a method."""
    use = rule.get("use") if isinstance(rule, Mapping) else None
    return use["recipe"] if isinstance(use, Mapping) and "recipe" in use else None


def _misuses(rule: Mapping[str, Any], name: object, way: Way) -> Iterator[Problem]:
    names = recipe_names()
    if name not in names:
        yield Problem(
            f"unknown recipe '{name}', expected {one_of(names)}{did_you_mean(str(name), names)}",
            (*way, "use", "recipe"),
        )
    for key in rule["use"]:
        if key != "recipe":
            yield Problem(
                f"found '{key}' beside a recipe, which has no settings; write its rules instead",
                (*way, "use", key),
            )
    for key in rule:
        if key not in ("use", "where"):
            yield Problem(
                f"found '{key}' beside a recipe, which may stand for several rules; leave it out",
                (*way, key),
            )


def _narrowed(rule: Mapping[str, Any], where: Any) -> Mapping[str, Any]:
    """Returns a rule of a recipe where `where` holds too."""
    if where is None:
        return rule
    return {**rule, "where": {"and": [rule["where"], where]} if "where" in rule else where}
