"""`peft-compiler merge`: folds a saved adapter into its model's own weights."""

import json
from typing import Annotated

import typer

from peft_compiler.cli.arguments import Adapter, AsJson, ModelName, Output
from peft_compiler.errors import InterchangeError

Untie = Annotated[bool, typer.Option("--untie", help="Give weights tied to an adapted one their own copy.")]


def merge(
    model: ModelName, adapter: Adapter, output: Output, untie: Untie = False, as_json: AsJson = False
) -> None:
    """Writes the plain model, with what was inserted folded into its weights."""
    from peft_compiler.cli.models import load_weights, save_weights
    from peft_compiler.interchange import load
    from peft_compiler.merging import merge as fold

    if output.exists():
        raise InterchangeError(
            f"'{output}' exists already", ["name a folder that does not: nothing is lost then"]
        )
    merged = fold(load(load_weights(model), adapter), untie=untie)
    save_weights(merged, output)
    typer.echo(json.dumps({"folder": str(output)}) if as_json else f"merged model written to {output}")
