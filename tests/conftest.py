"""Fixtures that every test may use."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.shape_checks import check_shapes

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden from this run")
    parser.addoption(
        "--adapters-oracle",
        type=Path,
        metavar="FOLDER",
        help="compare with what the adapters library wrote there, by benchmarks.adapters_oracle.reference",
    )


def pytest_configure() -> None:
    check_shapes()


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Returns `check(name, text)`: that `text` is what `tests/golden/<name>` holds.

    With `--update-golden` the file is rewritten instead, and the diff is for review.
    """

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n", encoding="utf-8")
        assert path.exists(), f"no golden file {name}: run pytest --update-golden and review it"
        assert text + "\n" == path.read_text(encoding="utf-8")

    return check
