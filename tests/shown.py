"""Documents that show code: what they show is run, and its outputs take the place of those shown."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import torch
from typer.testing import CliRunner

from peft_compiler.cli import app

FENCE = re.compile(r"^```(python|text|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([a-z_]+\.py)\n")


def with_real_outputs(shown: str) -> str:
    """Returns the document with each output as it comes out now.

    Python blocks run in order in one namespace, but one that begins with the name of a file
    is that file, in the current folder. A `text` block right below one holds what it
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
        if language == "python" and (file := FILE.match(body)):
            Path(file[1]).write_text(body, encoding="utf-8")
        elif language == "python":
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
        exec(compile(code, "the document", "exec"), names)
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
