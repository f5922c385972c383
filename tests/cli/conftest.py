"""A model on disk, and the command line without a terminal."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel
from typer.testing import CliRunner, Result

from peft_compiler.cli import app
from tests.zoo import build

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command line with the given arguments; whatever else is raised fails the test."""
    monkeypatch.setenv("TERMINAL_WIDTH", "110")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny GPT-2, as transformers writes it."""
    folder = tmp_path_factory.mktemp("models") / "gpt2"
    model = build("gpt2")
    assert isinstance(model, PreTrainedModel)
    model.save_pretrained(folder)
    return folder
