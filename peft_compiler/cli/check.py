"""`peft-compiler check`: what a spec means, without a model."""

from typing import TYPE_CHECKING

import typer

from peft_compiler.cli.arguments import AsJson, SpecSource

if TYPE_CHECKING:
    from peft_compiler.methods import Method


def check(spec: SpecSource, as_json: AsJson = False) -> None:
    """Reads a spec and says it back: as a sentence, rule by rule with every default, and as YAML."""
    from peft_compiler.spec.read import read_spec
    from peft_compiler.spec.write import rule_sentence, to_sentence, to_yaml

    read = read_spec(spec)
    if as_json:
        typer.echo(read.model_dump_json(indent=2))
        return
    typer.echo(to_sentence(read))
    typer.echo()
    for number, rule in enumerate(read.rules, start=1):
        typer.echo(f"rule {number}: {rule_sentence(rule)}\n  {settings_in_full(rule.use)}")
    for part in read.train:
        typer.echo(f"train {part}\n  as a copy that joins the inserted parameters; the base keeps its own")
    if read.dtype:
        typer.echo(f"dtype {read.dtype}\n  of all that is inserted, whatever the type of the base")
    typer.echo()
    typer.echo(to_yaml(read).rstrip())


def settings_in_full(method: "Method") -> str:
    """Returns every setting of a method, and the paper that defines it."""
    settings = method.model_dump(mode="json", exclude={"kind"}).items()
    said = ", ".join(f"{name}={'by place' if value is None else value}" for name, value in settings)
    return f"{said} ({method.paper})"
