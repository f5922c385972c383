"""What a compiled model remembers of how it was made."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from peft_compiler.errors import PeftCompilerError
from peft_compiler.plan import Plan


@dataclass(frozen=True, slots=True)
class Compilation:
    """Kept by the root of a compiled model.

    Attributes:
        plan: What was inserted where.
        seed: What the initial values were drawn from, with each insertion's path.
        example_inputs: Keyword arguments of a small call, tensors on the CPU.
        weights_digest: SHA-256 of each parameter and buffer of the base when it was compiled, by name.
    """

    plan: Plan
    seed: int
    example_inputs: Mapping[str, Any]
    weights_digest: Mapping[str, str]

    def example_on(self, model: nn.Module) -> dict[str, Any]:
        """Returns the example inputs on the device of `model`."""
        device = next(model.parameters()).device
        on_device = {
            name: value.to(device) for name, value in self.example_inputs.items() if isinstance(value, Tensor)
        }
        return {**self.example_inputs, **on_device}


def is_compiled(model: nn.Module) -> bool:
    """Whether `model` is the root of a compiled model."""
    return isinstance(model.__dict__.get("compilation"), Compilation)


def compilation_of(model: nn.Module) -> Compilation:
    """Returns what `model` remembers of how it was compiled.

    Raises:
        PeftCompilerError: If it is not the root of a compiled model.
    """
    if not is_compiled(model):
        raise PeftCompilerError(
            f"a {type(model).__name__} that was not compiled was given; expected what compile() returned"
        )
    return model.__dict__["compilation"]
