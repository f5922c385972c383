"""`peft-compiler demo`: fine-tunes a real model on real text, and proves what was promised."""

from enum import StrEnum
from typing import Annotated

import typer


class DemoModel(StrEnum):
    """What can be fine-tuned in the demo."""

    MINILM = "minilm"
    SMOLLM2 = "smollm2"


Which = Annotated[DemoModel, typer.Option("--model", help="An encoder (minilm) or a decoder (smollm2).")]
Prepare = Annotated[bool, typer.Option("--prepare", help="Fetch and convert what the demo reads, then stop.")]


def demo(model: Which = DemoModel.MINILM, prepare: Prepare = False) -> None:
    """Plans, compiles, verifies, trains, saves and reloads: real weights, real text, a few minutes."""
    from rich.console import Console

    from peft_compiler.cli.quiet import quiet
    from peft_compiler.demo.abstracts import abstracts
    from peft_compiler.demo.run import run
    from peft_compiler.demo.sentiment import sentiment

    tasks = {DemoModel.MINILM: sentiment, DemoModel.SMOLLM2: abstracts}
    with quiet():
        task = tasks[model]()
        if prepare:
            typer.echo(f"{model.value}: ready to run without a network")
        elif not run(task, Console()):
            raise typer.Exit(1)
