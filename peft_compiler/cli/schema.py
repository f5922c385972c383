"""`peft-compiler schema`: the JSON Schema of a spec file, for editors."""

import json

import typer


def schema() -> None:
    """Prints the JSON Schema of spec files, for completion and checks in an editor."""
    from peft_compiler.spec.schema import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))
