"""`peft-compiler check`: what a spec means, without a model."""

import typer

from peft_compiler.cli.arguments import AsJson, SpecSource


def check(spec: SpecSource, as_json: AsJson = False) -> None:
    """Reads a spec and says it back, as a sentence and as YAML."""
    from peft_compiler.spec import read_spec, to_sentence, to_yaml

    read = read_spec(spec)
    if as_json:
        typer.echo(read.model_dump_json(indent=2))
        return
    typer.echo(to_sentence(read))
    typer.echo()
    typer.echo(to_yaml(read).rstrip())
