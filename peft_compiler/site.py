"""`Site`: one place of a model, the vocabulary that every stage shares with `Role`."""

from dataclasses import dataclass

from peft_compiler.role import EDGES as EDGES
from peft_compiler.role import PROJECTIONS as PROJECTIONS
from peft_compiler.role import SHORT_NAMES as SHORT_NAMES
from peft_compiler.role import Role as Role
from peft_compiler.role import Tower as Tower
from peft_compiler.rows import Rows as Rows


@dataclass(frozen=True, slots=True)
class Anchor:
    """Ties an op seen while capturing to the same op in a container's local graph.

    Both run the same source, so the op is found by the instructions that were active:
    the chain of (function, instruction offset) from the container's forward down to
    the code that called the op. It holds in every mode (train, eval, with and without
    cache) of one process; it is never written to a file.

    Attributes:
        frames: The chain, outermost first.
        op: Name of the op, such as `"add"`.
        occurrence: Which of several equal chains in one call of the container, from 0.
        within: Path, below the container, of the module in whose forward the op stands and the chain
            starts, where the container's graph goes on into that module; else empty.
    """

    frames: tuple[tuple[str, int], ...]
    op: str
    occurrence: int = 0
    within: str = ""


@dataclass(frozen=True, slots=True)
class Projection:
    """A matrix of the base and the rows of its output that play one role.

    Attributes:
        weight: Name of the parameter within the module at the site's path.
        form: How the parameter is laid out and used: `"linear"` (out, in),
            `"transposed"` (in, out) as in Conv1D, `"embedding"` (entries, out), `"conv"`
            (out, in / groups, *kernel), `"experts"` (experts, out, in) and
            `"transposed_experts"` (experts, in, out).
        rows: The rows that play the role, or None where all do.
        anchor: The op that applies the matrix, where it stands in the forward of a
            module that does more; None where the module is the projection and nothing else.
        bias: Name of the bias parameter, or None.
        axes: How many of the last axes of what flows in, and of what flows out, are the features.
            More than one where the weight has an axis for heads and one for their width: the
            form is that of the matrix in which these are one axis.
        applied: The rows that the op applies, where it is given only some of the parameter's; else None.
        quantised: Whether the parameter is kept as codes. It may then have any name and layout, and be a
            buffer: form and shape are those of the matrix that the codes stand for.
    """

    weight: str
    form: str
    rows: Rows | None = None
    anchor: Anchor | None = None
    bias: str | None = None
    axes: tuple[int, int] = (1, 1)
    applied: Rows | None = None
    quantised: bool = False

    @property
    def rows_of_output(self) -> Rows | None:
        """The rows that play the role, counted in what the op gives; None where all of that does."""
        if self.applied is None or self.rows is None:
            return self.rows
        places = {row: place for place, row in enumerate(self.applied.indices)}
        found = [places[row] for row in self.rows.indices]
        return None if len(found) == len(places) else Rows.of(found, len(places))


@dataclass(frozen=True, slots=True)
class Source:
    """An activation that can be had in a forward because something in it takes it.

    Attributes:
        taker: The op, or the path of the module within the one whose forward it is.
        operand: Which of the tensors that the taker is given, from 0.
    """

    taker: Anchor | str
    operand: int


@dataclass(frozen=True, slots=True)
class Edge:
    """An activation on its way into an op, such as a branch before its residual add.

    Attributes:
        anchor: The op that takes the activation.
        operand: Which tensor operand of that op it is, from 0.
        source: The stream that the sub-layer which gives the activation left, before any norm of
            its own, or None where the forward that adds does not see it.
        norm: Path, within the module whose forward adds, of the norm that the sum goes into and
            nothing else does, as in a block that normalises after each sub-layer; or None.
        spread: Whether the op does not add the activation, but spreads it over several streams first.
    """

    anchor: Anchor
    operand: int
    source: Source | None = None
    norm: str | None = None
    spread: bool = False


@dataclass(frozen=True, slots=True)
class Projector:
    """A module below an attention's, and those rows of its output that are keys, or values."""

    module: str
    rows: Rows | None


@dataclass(frozen=True, slots=True)
class Core:
    """Where queries, keys, values and the mask meet.

    Attributes:
        anchor: The `scaled_dot_product_attention`, or the softmax over the keys.
        heads: Query heads.
        key_heads: Key and value heads; fewer than `heads` under grouped or multi-query attention.
        key_width: Width of one key head.
        value_width: Width of one value head.
        learned_bias: Whether what is added to the scores is learned or depends on the content
            (T5, DeBERTa), rather than fixed (a mask, ALiBi) or nothing.
        keys: What projects keys, if a module below the core's does that by itself.
        values: The same for values.
        source: Where what the attention is applied to, from which its queries are made, can be had
            in the forward that holds the core, or None.
        source_width: Size of the last axis of that.
        scores: The product of queries and keys, where the attention is spelt out.
        context: The product of probabilities and values, likewise.
        windows: Which axis of the scores counts windows that the keys are cut into: 1, before the
            heads, or 2, behind them; None where there are none.
        obstacle: Why nothing can join this attention, or None.
    """

    anchor: Anchor
    heads: int
    key_heads: int
    key_width: int
    value_width: int
    learned_bias: bool = False
    keys: Projector | None = None
    values: Projector | None = None
    source: Source | None = None
    source_width: int = 0
    scores: Anchor | None = None
    context: Anchor | None = None
    windows: int | None = None
    obstacle: str | None = None

    @property
    def opened(self) -> frozenset[str]:
        """The modules below the core's whose forwards hold its ops: a graph of it goes on into them."""
        paths = (
            each.within.split(".")
            for each in (self.anchor, self.scores, self.context)
            if each and each.within
        )
        return frozenset(".".join(path[:length]) for path in paths for length in range(1, len(path) + 1))


@dataclass(frozen=True, slots=True)
class Whole:
    """A module as a whole: a norm, a block.

    Attributes:
        parameters: Number of its parameters.
        weight: Name of the parameter by which it multiplies its result, or None.
        bias: Name of the parameter that it adds to its result last, or None.
        channels_first: Whether the features of its result are the second axis, not the last.
    """

    parameters: int
    weight: str | None = None
    bias: str | None = None
    channels_first: bool = False


@dataclass(frozen=True, slots=True)
class Input:
    """Where token embeddings enter a tower.

    Attributes:
        table: Name of the parameter that holds the embeddings, within the module at the site's path.
        argument: What that module's forward calls the token ids.
        anchor: The op that looks the tokens up, where it stands in the forward of that very
            module; None where a module of its own does nothing else.
        states: Path of the module that returns the tower's states, one for each position.
        readers: Paths of the modules that attend to the states: the decoder of an encoder-decoder.
    """

    table: str
    argument: str
    anchor: Anchor | None
    states: str
    readers: tuple[str, ...] = ()


Place = Projection | Edge | Core | Whole | Input


@dataclass(frozen=True, slots=True)
class Stack:
    """The blocks that a place is among, and where the states of a sequence come out of them.

    Attributes:
        path: The innermost module that runs all of them and is called once.
        states: The one whose result begins with what the last block gives, normed where it is.
        width: Size of a state.
    """

    path: str
    states: str
    width: int


@dataclass(frozen=True, slots=True)
class Site:
    """One place of a model, described well enough to plan without the model.

    Attributes:
        role: What the place is for.
        path: The module in whose forward it stands, such as `"model.layers.0.self_attn.q_proj"`.
        place: What exactly, within that module.
        width_in: Size of the last axis of what flows in (an embedding or an input: its entries; a
            convolution: its input channels).
        width_out: Size of the last axis of what flows out, counting only the role's rows.
        layer: Index of its block in its tower, from 0; None outside the blocks.
        tower: Which part of the model, where there is more than one kind or it is known.
        cross: Whether it belongs to an attention over another tower's output.
        shape: Shape of the weight, for a projection.
        module_type: Class name of the module at `path`.
        evidence: The ops that prove the role, in words, nearest first.
        number: Which of several like places in one module, such as two feed-forward layers, from 0.
        batch_axis: Which axis of what flows in (a core: of what its attention is applied to) counts
            the examples, where the others before the last count positions; None where the run
            does not tell.
        positions: Positions of the longest input that reaches it, where its tower looks them up in a table.
        dead_end: Why no gradient comes to what it gives, so that no rule means it; None where one may.
        stack: The blocks that it is among; None where there are none, or it does not see their positions.
    """

    role: Role
    path: str
    place: Place
    width_in: int
    width_out: int
    layer: int | None = None
    tower: Tower | None = None
    cross: bool = False
    shape: tuple[int, ...] = ()
    module_type: str = ""
    evidence: tuple[str, ...] = ()
    number: int = 0
    batch_axis: int | None = None
    positions: int | None = None
    dead_end: str | None = None
    stack: Stack | None = None

    @property
    def rows(self) -> Rows | None:
        """The rows of a fused projection that play the role; None where all do."""
        return self.place.rows if isinstance(self.place, Projection) else None

    @property
    def experts(self) -> int | None:
        """Number of experts whose matrices lie stacked in one parameter, or None."""
        stacked = isinstance(self.place, Projection) and self.place.form.endswith("experts")
        return self.shape[0] if stacked else None

    @property
    def name(self) -> str:
        """Unique among the sites of a model, readable and stable: path, role, and the weight or kind."""
        facet = (".cross" if self.cross else "") + (f"#{self.number}" if self.number else "")
        inner = ""
        if isinstance(self.place, Projection) and self.place.anchor is not None:
            inner = f".{self.place.weight}"
        return f"{self.path}{inner}:{self.role}{facet}"
