"""`peft-compiler verify`: proves the promises of a saved adapter on its model."""

import json
from dataclasses import asdict

import typer

from peft_compiler.cli.arguments import Adapter, AsJson, ModelName


def verify(model: ModelName, adapter: Adapter, as_json: AsJson = False) -> None:
    """Loads an adapter into its model and proves every promise; exits with 1 if one does not hold."""
    from peft_compiler.cli.models import load_weights
    from peft_compiler.interchange import load
    from peft_compiler.verifying import verify as prove

    report = prove(load(load_weights(model), adapter))
    typer.echo(json.dumps(asdict(report), indent=2) if as_json else str(report))
    if not report.ok:
        raise typer.Exit(1)
