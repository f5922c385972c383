"""`peft-compiler sites`: every place found in a model, and why."""

import difflib
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peft_compiler.cli.arguments import AsJson, ModelName
from peft_compiler.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.table import Table

    from peft_compiler.site import Site

Explain = Annotated[
    str | None,
    typer.Option("--explain", metavar="PATH", help="Say what proves the roles of the module at PATH."),
]

PIPE_WIDTH = 200
"""Columns of the table where the output is no terminal."""


def sites(model: ModelName, explain: Explain = None, as_json: AsJson = False) -> None:
    """Lists every place of a model that a spec can name. Reads its config, never its weights."""
    from rich.console import Console

    from peft_compiler.analysis.find_sites import find_sites
    from peft_compiler.cli.models import build_on_meta

    found = find_sites(build_on_meta(model))
    chosen = found if explain is None else sites_at(explain, found)
    if as_json:
        typer.echo(json.dumps([as_data(site) for site in chosen], indent=2))
    elif explain is not None:
        typer.echo("\n".join(explanation(site) for site in chosen))
    else:
        # Wide where there is no window to fit, so that a pipe gets one line for each place.
        console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
        console.print(as_table(chosen), highlight=False)


def sites_at(path: str, found: "Iterable[Site]") -> "tuple[Site, ...]":
    """Returns the sites of the module at `path`.

    Raises:
        PlanError: No site stands there.
    """
    by_path: dict[str, list[Site]] = {}
    for site in found:
        by_path.setdefault(site.path, []).append(site)
    if path not in by_path:
        near = difflib.get_close_matches(path, by_path, n=3)
        hint = f"near it: {', '.join(near)}" if near else "`peft-compiler sites MODEL` lists every place"
        raise PlanError(f"no place was found at '{path}'", [hint])
    return tuple(by_path[path])


def as_data(site: "Site") -> dict[str, Any]:
    """Returns what a reader of JSON can use of a site: everything but where in bytecode it is."""
    return {
        "name": site.name,
        "role": site.role.value,
        "path": site.path,
        "layer": site.layer,
        "tower": site.tower and site.tower.value,
        "cross": site.cross,
        "rows": site.rows and str(site.rows),
        "widths": [site.width_in, site.width_out],
        "module_type": site.module_type,
        "evidence": list(site.evidence),
        "dead_end": site.dead_end,
    }


def explanation(site: "Site") -> str:
    """Returns a site and its evidence in words, one line for each."""
    heading = f"{site.path} is {site.role}" + (" over another tower" if site.cross else "")
    if site.rows is not None:
        heading += f", rows {site.rows}"
    no_place = [] if site.dead_end is None else [f"  but no rule means it: {site.dead_end}"]
    return "\n".join([heading, *(f"  because {fact}" for fact in site.evidence), *no_place])


def as_table(found: "Iterable[Site]") -> "Table":
    """Returns a table of sites in the order in which the model runs them."""
    from rich.table import Column, Table

    path = Column("path", overflow="fold")
    table = Table("role", "layer", "tower", path, "widths", "rows", box=None, pad_edge=False)
    for site in found:
        table.add_row(
            site.role.value + (" (cross)" if site.cross else ""),
            "" if site.layer is None else str(site.layer),
            site.tower and site.tower.value,
            site.path + ("" if site.dead_end is None else f" (no rule means it: {site.dead_end})"),
            f"{site.width_in} → {site.width_out}",
            str(site.rows) if site.rows is not None else "",
        )
    return table
