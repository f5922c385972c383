"""The arguments that several commands share, each with its one explanation."""

from pathlib import Path
from typing import Annotated

import typer

ModelName = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A folder, the id of a model on the hub, or a config.json."),
]
SpecSource = Annotated[
    str,
    typer.Argument(metavar="SPEC", help="A file (.yaml, .json) or a sentence such as 'LoRA r=8 on q,v'."),
]
Adapter = Annotated[
    Path,
    typer.Argument(metavar="DIR", help="A folder written by `peft-compiler compile`."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")]
