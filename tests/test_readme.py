"""Whatever the README shows is run, and its outputs are compared word for word."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from peft_compiler.cli import app

README = Path(__file__).parents[1] / "README.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    return FENCE.findall(README.read_text())


def test_python_gives_the_output_shown_below_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, object] = {}
    following = [*blocks()[1:], ("", "")]
    ran = 0
    for (language, code), (next_language, shown) in zip(blocks(), following, strict=True):
        if language != "python":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, README.name, "exec"), names)
        if next_language == "text":
            assert without_trailing_spaces(printed.getvalue()) == shown
        ran += 1
    assert ran >= 2


def test_commands_give_the_output_shown_below_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(README.parent)
    monkeypatch.setenv("TERMINAL_WIDTH", "110")
    ran = 0
    for language, text in blocks():
        if language != "console":
            continue
        for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
            program, *arguments = shlex.split(command)
            if program != "peft-compiler":
                continue
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code in (0, 2), result.output
            assert without_trailing_spaces(result.output) == shown
            ran += 1
    assert ran >= 1


def without_trailing_spaces(text: str) -> str:
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
