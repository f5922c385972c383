"""The specs of published recipes."""

import re
from pathlib import Path

import pytest

from peft_compiler.spec.read import read_spec
from peft_compiler.spec.write import to_sentence

RECIPES = sorted((Path(__file__).parents[2] / "specs").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_names_its_paper_and_what_it_binds(path: Path) -> None:
    comment = "".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert re.search(r"arXiv:\d{4}\.\d{5}, .*(section|table|figure|appendix)", comment)
    spec = read_spec(path)
    assert all(rule.expect is not None for rule in spec.rules)
    assert read_spec(to_sentence(spec)) == spec


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 10
