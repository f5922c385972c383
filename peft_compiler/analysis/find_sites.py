"""From a model to its sites: every question about roles asked in turn, and the answers put side by side."""

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from peft_compiler.analysis.capture import capture
from peft_compiler.analysis.garbage import no_garbage
from peft_compiler.analysis.module_graph import ModuleGraph, fact
from peft_compiler.analysis.roles.attention import find_attentions
from peft_compiler.analysis.roles.blocks import Blocks, find_blocks
from peft_compiler.analysis.roles.dead_ends import find_dead_ends
from peft_compiler.analysis.roles.edges import find_joinings
from peft_compiler.analysis.roles.embeddings_and_heads import find_heads, find_lookups
from peft_compiler.analysis.roles.feed_forward import find_branches
from peft_compiler.analysis.roles.fused_rows import RowProbe
from peft_compiler.analysis.roles.inputs import Entrance, find_entrances
from peft_compiler.analysis.roles.linears import find_dataflow
from peft_compiler.analysis.roles.norms import find_norms
from peft_compiler.analysis.roles.residuals import find_residuals
from peft_compiler.analysis.roles.routers import find_routers
from peft_compiler.analysis.roles.stacks import find_stacks
from peft_compiler.analysis.roles.towers import find_towers
from peft_compiler.analysis.survey import Found, Survey
from peft_compiler.site import Projection, Role, Rows, Site


def find_sites(model: nn.Module, example_inputs: Any = None) -> tuple[Site, ...]:
    """Returns every place of `model` that can be adapted, in order of execution.

    The model is run once without its weights, and stays as it is; see `capture`.

    Args:
        model: Any module, on any device, the meta device included.
        example_inputs: What to run it on; derived from its forward and config by default.

    Raises:
        CaptureError: The model cannot be run.
    """
    return sites_of(capture(model, example_inputs))


@no_garbage()
def sites_of(graph: ModuleGraph) -> tuple[Site, ...]:
    """Returns the sites of a captured model, in order of execution; names are unique."""
    flow = find_dataflow(graph)
    probe = RowProbe()
    residuals = find_residuals(flow)
    attentions = find_attentions(flow, residuals, probe)
    outputs = {output.node for attention in attentions for output in attention.outputs}
    branches = find_branches(flow, residuals, outputs, probe)
    cores = [attention.meeting.core for attention in attentions]
    blocks = find_blocks(graph.modules, [fact(node).module for node in residuals or cores])
    norms = find_norms(flow)
    towers, stacks = find_towers(flow, blocks, attentions), find_stacks(flow, blocks, norms)
    survey = Survey(flow, blocks, towers, stacks, probe, find_dead_ends(graph))
    taken = {*outputs, *(branch.end for branch in branches)}
    taken |= {part.linear.node for branch in branches for part in branch.parts}
    heads = find_heads(flow, lambda node: node in taken or blocks.holding(fact(node).module) is not None)
    lookups = find_lookups(flow)
    entrances = find_entrances(flow, blocks, attentions, lookups)
    found = [
        *(site for lookup in lookups for site in survey.of_lookup(lookup)),
        *(site for entrance in entrances for site in survey.of_entrance(entrance)),
        *(site for attention in attentions for site in survey.of_attention(attention)),
        *(site for branch in branches for site in survey.of_branch(branch)),
        *(
            site
            for joining in find_joinings(flow, residuals, attentions, branches, norms)
            for site in survey.of_joining(joining)
        ),
        *(
            site
            for router in find_routers(flow)
            for site in survey.of_linear(Role.ROUTER, router, "its output becomes an index into a weight")
        ),
        *(site for path, node in norms.items() for site in survey.of_norm(path, node)),
        *(
            site
            for head in heads
            for site in survey.of_linear(Role.HEAD, head, "between the last block and an output")
        ),
        *survey.of_blocks(),
    ]
    return tuple(_numbered(_with_positions(_united(found), blocks, entrances)))


def _united(found: Iterable[Found]) -> list[Site]:
    """Returns one site where a module was called several times, with the rows of every call."""
    sites: dict[Hashable, Site] = {}
    for _, site in sorted(found, key=lambda each: each.order):
        place = site.place
        rowless = replace(place, rows=None) if isinstance(place, Projection) else place
        key = (site.role, site.path, site.cross, rowless)
        sites[key] = _joint(sites[key], site) if key in sites else site
    return list(sites.values())


def _joint(site: Site, other: Site) -> Site:
    """Returns the site of two calls: with the rows of both, and of the rest what both have."""
    if site.batch_axis != other.batch_axis:
        site = replace(site, batch_axis=None)
    if other.dead_end is None:
        site = replace(site, dead_end=None)
    if site.stack != other.stack:
        site = replace(site, stack=None)
    if not isinstance(site.place, Projection) or site.rows == other.rows:
        return site
    rows = None
    if site.rows is not None and other.rows is not None:
        rows = Rows.of(sorted({*site.rows.indices, *other.rows.indices}), site.rows.total)
    width = max(site.width_out, other.width_out) if rows is None else len(rows)
    return replace(site, place=replace(site.place, rows=rows), width_out=width)


def _with_positions(sites: Iterable[Site], blocks: Blocks, entrances: Iterable[Entrance]) -> Iterator[Site]:
    """Yields the sites, those within a stack of blocks with the positions of what flows into it."""
    positions = {entrance.stack: entrance.positions for entrance in entrances}
    for site in sites:
        block = blocks.holding(site.path)
        if block is None or site.cross:  # the keys of a cross-attention have the positions of another tower
            yield site
        else:
            yield replace(site, positions=positions.get(block.stack))


def _numbered(sites: Iterable[Site]) -> Iterator[Site]:
    """Yields the sites with a number each where several would have one name."""
    names: Counter[str] = Counter()
    for site in sites:
        yield replace(site, number=names[site.name])
        names[site.name] += 1
