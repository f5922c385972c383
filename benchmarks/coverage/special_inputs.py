"""Example inputs for the few types whose users would have to give their own: nothing says what they take."""

from collections.abc import Callable
from typing import Any

from torch import nn

SPECIAL: dict[str, Callable[[nn.Module], dict[str, Any]]] = {}
"""By model type; each takes the model."""


def special_inputs(model_type: str, model: nn.Module) -> dict[str, Any] | None:
    """Returns the example inputs of a type in the table, else None: they are derived."""
    make = SPECIAL.get(model_type)
    return None if make is None else make(model)
