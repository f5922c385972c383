"""The first thing a user sees, and how fast."""

import resource
import subprocess
import sys

import pytest

from peft_compiler.cli import app
from tests.cli.conftest import Run

COMMANDS = ["check", "plan", "sites", "compile", "verify", "merge", "schema", "demo"]


def test_help_takes_less_than_half_a_second() -> None:
    command = [sys.executable, "-c", "from peft_compiler.cli import main; main()", "--help"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # CPU time, since other tests share the machine.
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 0.5


def test_every_command_is_listed(run: Run) -> None:
    assert [command.name for command in app.registered_commands] == COMMANDS
    shown = run("--help").output
    assert all(command in shown for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_explains_itself(command: str, run: Run) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_a_misspelt_command_is_answered_with_the_right_one(run: Run) -> None:
    result = run("complie")
    assert result.exit_code == 2
    assert "compile" in result.output
