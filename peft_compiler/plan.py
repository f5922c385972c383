"""`Plan`: what will be inserted where, decided in full before the model is touched."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from peft_compiler.methods import Method, Wiring
from peft_compiler.site import Site
from peft_compiler.spec import Spec

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
        """Number of trainable parameters, by the method's formula."""
        return self.method.parameter_count(self.site)

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
        return sum(insertion.parameters for insertion in self.insertions)

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
        from peft_compiler.inspection.text import plan_table

        return plan_table(self)
