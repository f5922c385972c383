"""The tutorial is short, and what it shows is run: what it prints word for word, its contract in full."""

from pathlib import Path

import pytest

from peft_compiler import registering
from tests.shown import with_real_outputs

ROOT = Path(__file__).parents[1]
TUTORIAL = ROOT / "docs" / "own_method.md"
LONGEST = 60


def test_the_tutorial_shows_what_happens(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = TUTORIAL.read_text()
    monkeypatch.setattr(registering, "_registered", {})
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    happened = with_real_outputs(shown)
    if request.config.getoption("--update-golden"):
        TUTORIAL.write_text(happened)
    else:
        assert happened == shown


def test_the_tutorial_is_short_and_its_link_leads_there() -> None:
    assert len(TUTORIAL.read_text().splitlines()) <= LONGEST
    assert "(docs/own_method.md)" in (ROOT / "README.md").read_text()
