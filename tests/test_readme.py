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
from peft_compiler.methods import METHODS

README = Path(__file__).parents[1] / "README.md"
FENCE = re.compile(r"^```(python|text|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


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


def with_real_outputs(shown: str) -> str:
    """Returns the README with each output as it comes out now.

    Python blocks run in order in one namespace; a `text` block right below one holds what it
    printed. A `console` block holds commands after `$`, each with its output.
    """
    torch.manual_seed(0)
    names: dict[str, object] = {}
    written = io.StringIO()
    position = 0
    printed: str | None = None
    for block in FENCE.finditer(shown):
        between = shown[position : block.start()]
        written.write(between)
        language, body = block.groups()
        if language == "python":
            printed = output_of_python(body, names)
        else:
            if language == "console":
                body = "".join(output_of_command(command) for command in re.findall(r"^\$ (.*)$", body, re.M))
            elif printed is not None and not between.strip():
                body = printed
            printed = None
        written.write(f"```{language}\n{body}```")
        position = block.end()
    return written.getvalue() + shown[position:]


def output_of_python(code: str, names: dict[str, object]) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, README.name, "exec"), names)
    return tidy(printed.getvalue())


def output_of_command(command: str) -> str:
    program, *arguments = shlex.split(command)
    assert program == "peft-compiler"
    return f"$ {command}\n{tidy(CliRunner().invoke(app, arguments).output)}"


def without_rounding(text: str) -> str:
    """Returns the text without the sizes of rounding errors, which differ from processor to processor."""
    return re.sub(r"\b\d\.\de-\d\d\b", "…", text)


def tidy(text: str) -> str:
    """Returns the text without spaces at the ends of lines and empty lines at its own ends."""
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE).strip("\n") + "\n"


def test_the_readme_names_every_method_and_its_paper() -> None:
    shown = README.read_text()
    for method in METHODS:
        assert f"`{method.model_fields['kind'].default}`" in shown
        assert method.paper in shown
