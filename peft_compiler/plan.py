"""`Plan`: what will be inserted where, decided in full before the model is touched."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from peft_compiler.methods import Method, Wiring
from peft_compiler.site import Rows, Site
from peft_compiler.spec import Spec
from peft_compiler.spec.write import method_sentence

NAMESPACE = "inserted"
"""The child, of each module that an insertion joins, which owns the inserted parameters."""


def is_inserted(name: str) -> bool:
    """Whether a parameter or module of a compiled model was inserted by us.

    >>> is_inserted("layers.0.q_proj.inserted.query_lora.down")
    True
    """
    return NAMESPACE in name.split(".")


@dataclass(frozen=True, slots=True)
class Insertion:
    """One method at one site.

    Attributes:
        site: The place.
        method: What is inserted, with no default left open.
        name: Its name within `inserted`, unique in its module, such as `"query_lora"`.
        rule: Index of the rule that asked for it, from 0.
    """

    site: Site
    method: Method
    name: str
    rule: int

    @property
    def parameters(self) -> int:
        """Number of trainable parameters, by the method's formula, without those that it shares."""
        return self.method.parameter_count(self.site)

    @property
    def shared(self) -> dict[Hashable, int]:
        """Number of trainable parameters in each module that it shares with others of its rule."""
        return {(self.rule, alike): count for alike, count in self.method.shared_counts(self.site).items()}

    @property
    def path(self) -> str:
        """Qualified name of the inserted module in the compiled model."""
        return ".".join(filter(None, (self.site.path, NAMESPACE, self.name)))

    @property
    def wiring(self) -> Wiring:
        """How it joins its site."""
        return self.method.wiring(self.site)

    def describe(self) -> dict[str, Any]:
        """Returns plain data that says everything but where in memory or bytecode it is."""
        site = self.site
        return {
            "path": self.path,
            "role": site.role.value,
            "layer": site.layer,
            "tower": site.tower and site.tower.value,
            "cross": site.cross,
            "rows": site.rows and str(site.rows),
            "widths": [site.width_in, site.width_out],
            "wiring": self.wiring.value,
            "method": self.method.model_dump(mode="json"),
            "parameters": self.parameters,
            "rule": self.rule,
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """Insertions in the order in which they are wired; equal for equal inputs.

    Attributes:
        spec: What was asked for.
        insertions: What will be inserted.
        base_parameters: Number of parameters of the base.
    """

    spec: Spec
    insertions: tuple[Insertion, ...]
    base_parameters: int

    @property
    def trainable(self) -> int:
        """Number of parameters that will require gradients."""
        return sum(insertion.parameters for insertion in self.insertions) + self.shared

    @property
    def of_rules(self) -> tuple[Insertion, ...]:
        """The insertions that rules asked for; the others train parts of the base as copies."""
        return tuple(insertion for insertion in self.insertions if insertion.rule < len(self.spec.rules))

    @property
    def settled(self) -> "Plan":
        """What is left once training is over: what is saved."""
        kept = (replace(insertion, method=insertion.method.settled()) for insertion in self.insertions)
        return replace(self, spec=self.spec.settled(), insertions=tuple(kept))

    @property
    def shared(self) -> int:
        """Number of those that belong to several insertions."""
        modules: dict[Hashable, int] = {}
        for insertion in self.insertions:
            modules |= insertion.shared
        return sum(modules.values())

    def to_json(self) -> str:
        """Returns the plan as JSON text, byte for byte equal for equal plans."""
        content = {
            "spec": self.spec.model_dump(mode="json", exclude_defaults=True),
            "base_parameters": self.base_parameters,
            "trainable": self.trainable,
            "insertions": [insertion.describe() for insertion in self.insertions],
        }
        return json.dumps(content, indent=2, sort_keys=True)

    @property
    def digest(self) -> str:
        """SHA-256 of `to_json()`: equal for equal plans, in any process."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def __str__(self) -> str:
        # Always the same text, whatever the terminal: people compare and keep it.
        console = Console(width=110, color_system=None, markup=False, highlight=False, emoji=False)
        with console.capture() as capture:
            console.print(_table(self))
        share = f", {self.trainable / self.base_parameters:.3%} of the base's" if self.base_parameters else ""
        total = f"{self.trainable:,} trainable parameters{share} {self.base_parameters:,}"
        total += f"; kept in {self.spec.dtype}" if self.spec.dtype else ""
        total += f"; {self.shared:,} of them are shared by the places of a rule" if self.shared else ""
        lines = [line.rstrip() for line in capture.get().splitlines()]
        return "\n".join([*filter(None, lines), f"  {total}"])


def _table(plan: Plan) -> Table:
    """Returns one row for all insertions that differ in nothing but the layer."""
    groups: dict[tuple[str, ...], list[Insertion]] = defaultdict(list)
    for insertion in plan.insertions:
        groups[_common(plan, insertion)].append(insertion)
    rows: list[tuple[str, ...]] = []
    before: tuple[str, str] | None = None
    for (rule, method, place, tower, width, part, each), members in groups.items():
        layers = layer_ranges(member.site.layer for member in members)
        in_all = f"{sum(member.parameters for member in members):,}"
        heading = ("", "") if (rule, method) == before else (rule, method)
        rows.append((*heading, place, tower, layers, f"{len(members):,}", width, part, each, in_all))
        before = (rule, method)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    names = ("rule", "method", "place", "tower", "layers", "sites", "width", "rows", "each", "in all")
    # What is empty, or the one tower that a model has, tells nothing.
    telling = [index for index in range(len(names)) if any(row[index] for row in rows)]
    if len({insertion.site.tower for insertion in plan.insertions}) == 1 and names.index("tower") in telling:
        telling.remove(names.index("tower"))
    for index in telling:
        right = names[index] in ("sites", "each", "in all")
        wraps = names[index] in ("method", "layers", "rows")
        table.add_column(names[index], justify="right" if right else "left", no_wrap=not wraps)
    for row in rows:
        table.add_row(*(row[index] for index in telling))
    return table


def _common(plan: Plan, insertion: Insertion) -> tuple[str, ...]:
    """Returns what the insertions in one row of the table have in common, cell by cell."""
    site = insertion.site
    experts = f"{site.experts} experts" if site.experts is not None else ""
    return (
        str(insertion.rule + 1) if insertion.rule < len(plan.spec.rules) else "train",
        method_sentence(insertion.method, sizes=True),
        f"cross {site.role}" if site.cross else str(site.role),
        str(site.tower or ""),
        f"{site.width_in} → {site.width_out}",
        str(site.rows) if site.rows is not None else experts,
        f"{insertion.parameters:,}",
    )


def layer_ranges(layers: Iterable[int | None]) -> str:
    """Returns layers in few words; nothing for places outside the layers.

    >>> layer_ranges([0, 1, 2, 5]), layer_ranges([1, 3, 5, 7]), layer_ranges([None])
    ('0-2, 5', '1-7 by 2', '')
    """
    numbers = sorted({layer for layer in layers if layer is not None})
    steps = {later - earlier for earlier, later in pairwise(numbers)}
    if len(numbers) > 2 and len(steps) == 1 and steps != {1}:
        return f"{numbers[0]}-{numbers[-1]} by {steps.pop()}"
    runs = [(start, start + length - 1) for start, length in Rows.of(numbers, total=0).runs]
    return ", ".join(f"{first}-{last}" if first < last else str(first) for first, last in runs)
