"""`Edit`: one insertion, as the module that it joins has to know it; `Flavour`: what its edits come to."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from torch.distributed.device_mesh import DeviceMesh

from peft_compiler.methods import Wiring
from peft_compiler.site import Anchor, Core, Input, Place, Projection, Whole


class Standing(StrEnum):
    """Where prompts stand in a row that is padded on the left."""

    FIRST = "first"
    """Before the padding: what reads the states of prompts could not tell where else they are."""
    AS_TOLD = "as told"
    """Behind it, where a call tells positions. Else the place of a token is its position, of padding too."""
    BEHIND = "behind"
    """Behind it: no call can tell positions, so that a row has those which it has alone."""


@dataclass(frozen=True, slots=True)
class Front:
    """The tokens of a tower, which prompts are put in front of.

    Attributes:
        input: The tokens.
        hidden: Positions of prompts that a cache of the tower hides when the call comes to these: their
            own, and those of the prompts that stand before them.
        standing: Where they stand in a padded row.
    """

    input: Input
    hidden: int
    standing: Standing


@dataclass(frozen=True, slots=True)
class States:
    """The states that a module returns, of which those of prompts are to be dropped.

    Attributes:
        length: How many.
        within: Whether the tower's module, around this one, drops what this one leaves.
        standing: Where they stand in a padded row.
        is_read: Whether other modules attend to the last states, which then keep them.
    """

    length: int
    within: bool
    standing: Standing
    is_read: bool = False


@dataclass(frozen=True, slots=True)
class Shown:
    """The states of an encoder that a model shows to its caller, and attention to them.

    Attributes:
        length: How many positions of prompts are dropped from them.
        members: How many prompts of an ensemble gave states, side by side; 1 without one.
    """

    length: int
    members: int


@dataclass(frozen=True, slots=True)
class Reader:
    """The states that a module is given to attend to, which hold more positions than its mask.

    Attributes:
        members: How many prompts of an ensemble gave states, side by side; 1 without one.
    """

    members: int


@dataclass(frozen=True, slots=True)
class Lookup:
    """The op that looks tokens up: the one at `anchor`, or else the child that holds the table.

    Attributes:
        module: Path of the child.
        anchor: The op, or None.
        start: The first position whose embedding is exchanged: those before belong to later insertions.
    """

    module: str
    anchor: Anchor | None
    start: int


@dataclass(frozen=True, slots=True)
class Members:
    """The answers of a whole model to the prompts of an ensemble.

    Attributes:
        count: Number of prompts.
        answer: How the answers are made one: `"mean"` or `"majority"`.
        tokens: Name of the argument that holds token ids.
    """

    count: int
    answer: str
    tokens: str


@dataclass(frozen=True, slots=True)
class Batch:
    """The batch of a tower, with one row for each prompt of an ensemble, also where it is called by itself.

    Attributes:
        count: Number of prompts.
        tokens: Name of the argument that holds token ids.
        is_read: Whether other modules attend to the tower's states.
    """

    count: int
    tokens: str
    is_read: bool


@dataclass(frozen=True, slots=True)
class TwoRuns:
    """A stack of blocks that runs twice.

    Attributes:
        routers: Names, within the host's `inserted`, of the routers that read the first run.
        shown: Path of the stack under which a module below shows its states; None where the host
            returns them.
    """

    routers: tuple[str, ...]
    shown: str | None


@dataclass(frozen=True, slots=True)
class Witness:
    """The module that gives the last states of the stack at a path."""

    stack: str


@dataclass(frozen=True, slots=True)
class Carrier:
    """A block, which is given what its places are given as arguments of its own."""


_OF_CALL = (Input, Front, States, Shown, Reader, Members, Batch, TwoRuns, Witness)


@dataclass(frozen=True, slots=True)
class Spread:
    """What of a host's values lies on several processes, of which each has the part of its own weights.

    Attributes:
        weight: Name of a spread parameter at or below the host, which knows the processes; None where there
            is none, and the host has whole vectors, but of its process alone, as a norm of single heads has.
        enters: Whether what enters the place is such a part.
        leaves: Whether what leaves it is one; of an attention, its heads.
        processes: Those that have the vectors, where there is no weight.
    """

    weight: str | None
    enters: bool
    leaves: bool
    processes: DeviceMesh | None = None


@dataclass(frozen=True, slots=True)
class Edit:
    """Joins the inserted module `inserted.<name>` to a place in the forward of its host.

    Attributes:
        name: Name within the host's `inserted`.
        wiring: How it joins.
        place: Where, in the host's forward.
        casts: Whether the inserted module keeps a type of its own, whatever flows through the host.
        spread: What lies on several processes there, or None.
    """

    name: str
    wiring: Wiring
    place: Place | Front | States | Shown | Reader | Lookup | Members | Batch | TwoRuns | Witness | Carrier
    casts: bool = False
    spread: Spread | None = None

    @property
    def of_call(self) -> bool:
        """Whether it changes what the host is called with and what it returns, by name."""
        return isinstance(self.place, _OF_CALL)

    @property
    def around(self) -> bool:
        """Whether it joins the host as a whole, whatever the host's forward does inside."""
        if isinstance(self.place, Projection):
            # A forward by plan is called as it is, and may be called with another weight.
            inside = self.wiring is Wiring.ON_WEIGHT and self.spread is None
            return self.place.anchor is None and not inside
        whole = isinstance(self.place, Whole)
        return self.of_call or (whole and (self.wiring is Wiring.REPLACE or self.spread is not None))


class Flavour(StrEnum):
    """How the forward of a rewritten module comes about."""

    AROUND = "around"
    """Insertions join the module as a whole: one fixed graph, known in advance."""
    INSIDE = "inside"
    """The module is rewritten inside: a graph for each signature of calls."""
    BOTH = "both"
    """Some insertions change how it is called, others join it inside: a fixed graph around those."""
    KEPT = "kept"
    """Nothing joins it: the original forward runs, and its graph is traced when looked at."""


def opened_by(edits: Iterable[Edit]) -> frozenset[str]:
    """Returns the modules below a host into whose forwards its graph goes on, because of what joins it."""
    cores = (edit.place for edit in edits if isinstance(edit.place, Core))
    return frozenset(path for core in cores for path in core.opened)
