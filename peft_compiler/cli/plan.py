"""`peft-compiler plan`: what would be inserted where, without weights."""

import typer

from peft_compiler.cli.arguments import AsJson, ModelName, SpecSource


def plan(model: ModelName, spec: SpecSource, as_json: AsJson = False) -> None:
    """Shows what a spec would insert into a model. Reads the model's config, never its weights."""
    from peft_compiler.cli.models import build_on_meta
    from peft_compiler.compiling import plan as make_plan
    from peft_compiler.spec.read import read_spec

    read = read_spec(spec)  # before the model: a misspelt word should not wait for it
    made = make_plan(build_on_meta(model), read)
    typer.echo(made.to_json() if as_json else str(made))
