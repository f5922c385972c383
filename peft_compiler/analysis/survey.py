"""Puts what the roles found into sites, each with its place, its layer and the ops that prove it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

from torch import fx

from peft_compiler.analysis.core_places import container_of, matrices_of, place_of_core
from peft_compiler.analysis.module_graph import fact
from peft_compiler.analysis.ops import kind, tensors
from peft_compiler.analysis.places import Matrix, matrix_of_linear, matrix_of_lookup
from peft_compiler.analysis.roles.attention import Attention
from peft_compiler.analysis.roles.batches import find_batch_axis, has_one_context_an_example
from peft_compiler.analysis.roles.blocks import Blocks
from peft_compiler.analysis.roles.dead_ends import DeadEnds
from peft_compiler.analysis.roles.edges import Joining
from peft_compiler.analysis.roles.embeddings_and_heads import Lookup
from peft_compiler.analysis.roles.feed_forward import Branch
from peft_compiler.analysis.roles.fused_rows import RowProbe, is_unknown
from peft_compiler.analysis.roles.inputs import Entrance
from peft_compiler.analysis.roles.linears import Dataflow, Linear
from peft_compiler.analysis.roles.norms import find_affine, has_channels_first
from peft_compiler.analysis.roles.sources import call_around, find_source
from peft_compiler.analysis.roles.stacks import Stacks
from peft_compiler.analysis.roles.towers import Towers
from peft_compiler.site import Anchor, Core, Edge, Input, Place, Role, Rows, Site, Stack, Whole

_MOST_STEPS_TOLD = 8
_OPERANDS = {Role.QUERY: "query", Role.KEY: "key", Role.VALUE: "value"}


class Found(NamedTuple):
    """A site and the position of its op in the run."""

    order: int
    site: Site


@dataclass(frozen=True, slots=True)
class Survey:
    """What every site needs to know: the graph, the blocks, towers and stacks; and who answers about rows."""

    flow: Dataflow
    blocks: Blocks
    towers: Towers
    stacks: Stacks
    probe: RowProbe
    dead_end: DeadEnds

    def of_lookup(self, lookup: Lookup) -> Iterator[Found]:
        """Yields the embedding site of a lookup."""
        matrix = matrix_of_lookup(self.flow, lookup)
        evidence = (f"{kind(lookup.node)} by the input {lookup.source}",)
        yield self._matrix(Role.EMBEDDING, lookup.node, matrix, None, evidence)

    def of_entrance(self, entrance: Entrance) -> Iterator[Found]:
        """Yields the input of a tower; nothing where its module holds no table."""
        lookup, path = entrance.lookup, entrance.path
        prefix = f"{path}." if path else ""
        tables = [name for name in self.flow.graph.parameters[lookup.table] if name.startswith(prefix)]
        if not tables:
            return
        place = Input(
            table=tables[0].removeprefix(prefix),
            # Below the root, only transformers' own name for it is known.
            argument="input_ids" if path else lookup.source,
            anchor=fact(lookup.node).anchor if fact(lookup.node).module == path else None,
            states=entrance.states,
            readers=entrance.readers,
        )
        widths = (fact(lookup.table).shape[0], fact(lookup.node).shape[-1])
        evidence = f"{kind(lookup.node)} {self._where(lookup.node)} → the first block in {entrance.stack}"
        found = self._found(Role.INPUT, lookup.node, place, widths, (evidence,), path=path)
        tower = self.towers.towers.get(entrance.stack)
        yield Found(found.order, replace(found.site, layer=None, tower=tower, positions=entrance.positions))

    def of_linear(self, role: Role, linear: Linear, evidence: str) -> Iterator[Found]:
        """Yields the site of a whole linear; nothing where its weight is no parameter."""
        yield from self._projection(role, linear, None, (evidence,))

    def of_attention(self, attention: Attention) -> Iterator[Found]:
        """Yields the core of an attention and its projections."""
        core = attention.meeting.core
        unknown: list[str] = []
        for role, projections in attention.projections.items():
            for projected in projections:
                start = self._told(projected.linear.node)
                if is_unknown(projected.rows):
                    unknown.append(f"which rows of {start} are the {_OPERANDS[role]} is unknown")
                told = f"{_way(start, projected.way)} {fact(core).op} operand {_OPERANDS[role]}"
                yield from self._projection(role, projected.linear, projected.rows, (told,), attention.cross)
        for output in attention.outputs:
            told = f"{fact(core).op} in {self._where(core)} → {self._told(output.node)}"
            yield from self._projection(Role.ATTENTION_OUTPUT, output, None, (told,), attention.cross)
        yield self._core(attention, tuple(unknown))

    def of_branch(self, branch: Branch) -> Iterator[Found]:
        """Yields the projections of a feed-forward layer or a mixer."""
        fed = branch.end
        for part in branch.parts:
            node, is_output = part.linear.node, part.role in (Role.DOWN, Role.MIXER_OUTPUT)
            after = "residual add" if node is branch.end else self._told(branch.end if is_output else fed)
            fed = node if is_output else fed
            evidence = f"{_way(self._told(node), part.way)} {after}"
            yield from self._projection(part.role, part.linear, part.rows, (evidence,))

    def of_joining(self, joining: Joining) -> Iterator[Found]:
        """Yields the edge on which a sub-layer's output enters an add."""
        operand = tensors(joining.add).index(joining.value)
        spread = kind(joining.add) != "add"
        place = Edge(_anchor(joining.add), operand, joining.source, joining.norm, spread)
        width = fact(joining.value).shape[-1]
        evidence = (f"operand {operand} of {fact(joining.add).op} in {self._where(joining.add)}",)
        found = self._found(joining.role, joining.add, place, (width, width), evidence, cross=joining.cross)
        if found.site.layer is None and (block := self.blocks.holding(fact(joining.end).module)):
            tower = self.towers.towers.get(block.stack)
            found = Found(found.order, replace(found.site, layer=self.towers.layer(block), tower=tower))
        yield self._with_batch_of(joining.value, found)

    def of_norm(self, path: str, node: fx.Node) -> Iterator[Found]:
        """Yields the site of a module that normalises."""
        shape = fact(self.flow.graph.calls[path][0].outputs[0]).shape
        affine, channels_first = find_affine(self.flow.graph, path), has_channels_first(node)
        width = shape[1 if channels_first else -1]
        size = self.flow.graph.modules[path].size
        place = Whole(size, affine.weight, affine.bias, channels_first)
        yield self._found(Role.NORM, node, place, (width, width), (f"{kind(node)} in {path}",))

    def of_blocks(self) -> Iterator[Found]:
        """Yields every block as a whole, where its call shows what comes out."""
        for path, block in self.blocks.by_path.items():
            calls = self.flow.graph.calls.get(path, ())
            outputs = [node for call in calls for node in call.outputs if node in self.flow.taint.activations]
            if outputs and block.is_whole:
                width = fact(outputs[0]).shape[-1]
                evidence = (f"repeated in {block.stack or 'the model'}, with a residual add",)
                place = Whole(self.flow.graph.modules[path].size)
                found = self._found(Role.BLOCK, outputs[0], place, (width, width), evidence, path=path)
                yield self._with_batch_of(outputs[0], found)

    # ---- the parts of a site

    def _core(self, attention: Attention, unknown: tuple[str, ...]) -> Found:
        core, place = attention.meeting.core, place_of_core(self.flow, attention, self.probe)
        width = place.heads * place.value_width
        matrices = matrices_of(self.flow, attention, Role.VALUE, self.probe)
        widths = (max((matrix.width_in for matrix in matrices), default=width), width)
        evidence = (f"{fact(core).op} in {self._where(core)}", *unknown)
        path = container_of(attention)
        found = self._found(
            Role.ATTENTION_CORE, core, place, widths, evidence, cross=attention.cross, path=path
        )
        # Probabilities may be returned where nothing goes on with the values that they weigh.
        dead_end = self.dead_end(attention.meeting.context)
        found = Found(found.order, replace(found.site, dead_end=dead_end))
        return (
            found if attention.entry is None else self._with_source(found, place, attention, attention.entry)
        )

    def _with_source(self, found: Found, place: Core, attention: Attention, entry: Linear) -> Found:
        """Returns the core with what its attention is applied to."""
        width = fact(entry.data).shape[-1]
        had = find_source(self.flow, attention.meeting.core, entry, width)
        if had is None:
            return found
        source, data = had
        place = replace(place, source=source, source_width=width)
        found = self._with_batch_of(data, Found(found.order, replace(found.site, place=place)))
        axis, context = found.site.batch_axis, attention.meeting.context
        heads = (place.heads, place.key_heads)
        if axis is None or has_one_context_an_example(context, heads, fact(data).shape[axis]):
            return found
        return Found(found.order, replace(found.site, batch_axis=None))

    def _with_batch_of(self, data: fx.Node, found: Found) -> Found:
        axis = find_batch_axis(self.flow.graph, data)
        return Found(found.order, replace(found.site, batch_axis=axis))

    def _projection(
        self,
        role: Role,
        linear: Linear,
        rows: Rows | None,
        evidence: tuple[str, ...],
        cross: bool = False,
    ) -> Iterator[Found]:
        matrix = None if is_unknown(rows) else matrix_of_linear(self.flow, linear, self.probe)
        if matrix is not None:
            found = self._matrix(role, linear.node, matrix, rows, evidence, cross)
            data = linear.data
            if matrix.place.anchor is None:
                # The module may flatten what it is given before it multiplies.
                (data, *_) = call_around(self.flow.graph.calls[matrix.path], linear.node).inputs
            yield self._with_batch_of(data, found)

    def _matrix(
        self,
        role: Role,
        node: fx.Node,
        matrix: Matrix,
        rows: Rows | None,
        evidence: tuple[str, ...],
        cross: bool = False,
    ) -> Found:
        place = matrix.place_of(rows)
        width_out = matrix.width_out if place.rows is None else len(place.rows)
        widths = (matrix.width_in, width_out)
        order, site = self._found(role, node, place, widths, evidence, matrix.shape, cross)
        # By chance, the sequence that a cross-attention takes them from may be as long as the stack's.
        apart = cross and role in (Role.KEY, Role.VALUE)
        stack = None if apart else self._stack(site.path, node, place.axes[1])
        return Found(order, replace(site, stack=stack))

    def _stack(self, path: str, node: fx.Node, axes: int) -> Stack | None:
        """Returns the stack around a matrix whose positions every op that applies it sees one by one."""
        linear, block = self.flow.linears.get(node), self.blocks.holding(path)
        bases = self.flow.taint.bases[linear.weight] if linear is not None else ()
        uses = {use.node for base in bases for use in self.flow.uses[base]}
        found = {self.stacks.around(block, use, axes) for use in uses or {node}}
        return found.pop() if len(found) == 1 else None

    def _found(
        self,
        role: Role,
        node: fx.Node,
        place: Place,
        widths: tuple[int, int],
        evidence: tuple[str, ...],
        shape: tuple[int, ...] = (),
        cross: bool = False,
        path: str | None = None,
    ) -> Found:
        path = fact(node).module if path is None else path
        block = self.blocks.holding(path)
        site = Site(
            role=role,
            path=path,
            place=place,
            width_in=widths[0],
            width_out=widths[1],
            layer=None if block is None else self.towers.layer(block),
            tower=None if block is None else self.towers.towers.get(block.stack),
            cross=cross,
            shape=shape,
            module_type=self.flow.graph.modules[path].type,
            evidence=evidence,
            dead_end=self.dead_end(node),
            stack=self.stacks.around(block),
        )
        return Found(fact(node).order, site)

    def _told(self, node: fx.Node) -> str:
        return f"{fact(node).op} {self._where(node)}"

    def _where(self, node: fx.Node) -> str:
        return fact(node).module or "the model"


def _anchor(node: fx.Node) -> Anchor:
    anchor = fact(node).anchor
    assert anchor is not None, "only inputs and parameters have no anchor"
    return anchor


def _way(start: str, nodes: Iterable[fx.Node]) -> str:
    steps = [step for step, _ in groupby(kind(node) for node in nodes if kind(node) != "output")]
    if len(steps) > _MOST_STEPS_TOLD:
        steps = [*steps[: _MOST_STEPS_TOLD // 2], "…", *steps[-_MOST_STEPS_TOLD // 2 :]]
    return " → ".join([start, *steps, ""]).rstrip()
