"""`peft-compiler plan`: what would be inserted where, and what it takes to train that, without weights."""

import json
from typing import Annotated

import typer

from peft_compiler.cli.arguments import AsJson, ModelName, SpecSource

Devices = Annotated[
    int | None,
    typer.Option("--devices", min=1, help="Estimate the memory of training on this many devices."),
]
Batch = Annotated[int, typer.Option("--batch", min=1, help="With --devices: sequences on each device.")]
Length = Annotated[int, typer.Option("--length", min=1, help="With --devices: tokens in each sequence.")]


def plan(
    model: ModelName,
    spec: SpecSource,
    devices: Devices = None,
    batch: Batch = 1,
    length: Length = 2048,
    as_json: AsJson = False,
) -> None:
    """Shows what a spec would insert into a model. Reads the model's config, never its weights."""
    from peft_compiler.cli.models import as_saved, build_on_meta
    from peft_compiler.compiling import plan as make_plan
    from peft_compiler.estimating import estimate
    from peft_compiler.spec.read import read_spec

    read = read_spec(spec)  # before the model: a misspelt word should not wait for it
    built = build_on_meta(model)
    if devices is None:
        made = make_plan(built, read)
        typer.echo(made.to_json() if as_json else str(made))
        return
    # As the weights are saved: the config says in which type.
    made = estimate(built.to(dtype=as_saved(built)), read, devices, batch, length)
    if as_json:
        typer.echo(json.dumps({**json.loads(made.plan.to_json()), "memory": made.describe()}, indent=2))
    else:
        typer.echo(f"{made.plan}\n\n{made}")
