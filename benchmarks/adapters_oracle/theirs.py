"""What the adapters library wrote for one comparison, read by place."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

FAILURE = "error.txt"
"""Where stands why the library did not run."""
NAME = "oracle"
"""What the library is told to call an adapter that is alone."""


@dataclass(frozen=True)
class Slot:
    """The tensors of one adapter of the library's at one place: their short names, with their full ones."""

    names: Mapping[str, str]

    def __getitem__(self, short: str) -> str:
        return self.names[short]

    def __contains__(self, short: str) -> bool:
        return short in self.names


@dataclass(frozen=True)
class Theirs:
    """One comparison's half of the library.

    Attributes:
        weights: Values of the adapters' tensors.
        gradients: Gradients of those that are trained.
        outputs: Logits in eval and in train mode.
        slots: The adapters at each kind of place, in the order of the model's modules.
    """

    weights: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    slots: Mapping[str, tuple[Slot, ...]]

    @classmethod
    def read(cls, folder: Path) -> "Theirs":
        """Returns what `reference` wrote."""
        weights, gradients, outputs = (
            load_file(folder / f"{name}.safetensors") for name in ("weights", "gradients", "outputs")
        )
        return cls(weights, gradients, outputs, slots_of(json.loads((folder / "places.json").read_text())))


def slots_of(places: Mapping[str, tuple[str, str, str | None]]) -> Mapping[str, tuple[Slot, ...]]:
    """Returns the adapters by kind of place, such as `mh_adapter`, or `selfattn_lora q`."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for name, (path, location, matrix) in places.items():
        kind, owner, short = (f"{location} {matrix}" if matrix else location), path, name[len(path) :]
        if pooled := re.search(rf"prefix_tunings\.{NAME}\.(\w+)\.(.*)", name):
            # All prefixes of a kind are kept in one module.
            kind, owner, short = f"pool {pooled[1]}", pooled[1], pooled[2]
        elif path:
            # What stands before the name of an adapter says only that there is one.
            short = re.sub(
                rf"^\.(\w+\.)?({NAME}\.)?", lambda start: "" if start[2] else start[1] or "", short
            )
        else:
            kind, short = "model", re.sub(rf"^.*?\.{NAME}\.", "", name)
        found.setdefault(kind, {}).setdefault(owner, {})[short] = name
    return {kind: tuple(Slot(names) for names in owners.values()) for kind, owners in found.items()}
