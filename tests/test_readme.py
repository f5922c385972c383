"""Whatever the README shows is run, and its outputs are compared word for word."""

from pathlib import Path

import pytest

from peft_compiler.methods import METHODS
from tests.shown import with_real_outputs, without_rounding

README = Path(__file__).parents[1] / "README.md"


def test_the_readme_shows_what_happens(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = README.read_text()
    monkeypatch.chdir(tmp_path)
    happened = with_real_outputs(shown)
    if request.config.getoption("--update-golden"):
        README.write_text(happened)
    else:
        assert without_rounding(happened) == without_rounding(shown)


def test_the_readme_names_every_method_and_its_paper() -> None:
    shown = README.read_text()
    for method in METHODS:
        assert f"`{method.model_fields['kind'].default}`" in shown
        assert method.paper in shown
