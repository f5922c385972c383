"""`peft-compiler compile`: a model and a spec to a folder with the inserted parameters."""

import json
from typing import Annotated

import typer

from peft_compiler.cli.arguments import AsJson, ModelName, Output, SpecSource

Seed = Annotated[int, typer.Option(help="Seed of the inserted parameters' initial values.")]


def compile_(
    model: ModelName, spec: SpecSource, output: Output, seed: Seed = 0, as_json: AsJson = False
) -> None:
    """Compiles a spec into a model and saves what was inserted, ready to be trained."""
    from peft_compiler.cli.models import load_weights
    from peft_compiler.compiling import compile as compile_model
    from peft_compiler.lowering.compilation import compilation_of
    from peft_compiler.saving import save
    from peft_compiler.spec.read import read_spec

    read = read_spec(spec)
    tuned = compile_model(load_weights(model), read, seed=seed)
    save(tuned, output)
    plan = compilation_of(tuned).plan
    size = sum(file.stat().st_size for file in output.iterdir())
    if as_json:
        typer.echo(json.dumps({"folder": str(output), "trainable": plan.trainable, "bytes": size}))
    else:
        typer.echo(f"{plan}\n\nsaved {plan.trainable:,} parameters in {output} ({size:,} bytes)")
