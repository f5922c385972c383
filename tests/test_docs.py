"""The tutorials are short, and what they show is run: what it prints word for word, its contract in full."""

from pathlib import Path

import pytest

from peft_compiler import registering
from tests.shown import with_real_outputs

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "docs").glob("*.md"))
LONGEST = 60

every_tutorial = pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda tutorial: tutorial.stem)


@every_tutorial
def test_a_tutorial_shows_what_happens(
    tutorial: Path, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = tutorial.read_text()
    monkeypatch.setattr(registering, "_registered", {})
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    happened = with_real_outputs(shown)
    if request.config.getoption("--update-golden"):
        tutorial.write_text(happened)
    else:
        assert happened == shown


@every_tutorial
def test_a_tutorial_is_short_and_its_link_leads_there(tutorial: Path) -> None:
    assert len(tutorial.read_text().splitlines()) <= LONGEST
    assert f"(docs/{tutorial.name})" in (ROOT / "README.md").read_text()
