"""The command `peft-compiler`. Torch is imported only when a command that needs it runs."""

from typing import Any

import typer
from typer.core import TyperGroup

from peft_compiler.cli.check import check
from peft_compiler.cli.compile import compile_
from peft_compiler.cli.demo import demo
from peft_compiler.cli.merge import merge
from peft_compiler.cli.plan import plan
from peft_compiler.cli.schema import schema
from peft_compiler.cli.sites import sites
from peft_compiler.cli.verify import verify
from peft_compiler.errors import PeftCompilerError

BAD_INPUT = 2
"""Exit code when what the user gave cannot be used; 1 means that a promise does not hold."""


class Commands(TyperGroup):
    """The group of all commands: a deliberate error becomes one message, never a traceback."""

    def invoke(self, ctx: Any) -> Any:  # typer has moved the class of contexts between its versions
        """Runs the command that was named."""
        try:
            return super().invoke(ctx)
        except PeftCompilerError as error:
            typer.echo(f"{type(error).__name__}: {error}", err=True)
            raise typer.Exit(BAD_INPUT) from error


app = typer.Typer(
    cls=Commands,
    name="peft-compiler",
    help="Parameter-efficient fine-tuning as a compiler.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("check")(check)
app.command("plan")(plan)
app.command("sites")(sites)
app.command("compile")(compile_)
app.command("verify")(verify)
app.command("merge")(merge)
app.command("schema")(schema)
app.command("demo")(demo)


def main() -> None:
    """Runs the command line that the process was started with."""
    app()
