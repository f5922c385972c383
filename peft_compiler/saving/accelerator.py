"""What accelerate saves and loads of compiled models: their insertions alone."""

from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

from peft_compiler.saving.checkpoint import compiled_in, without_bases
from peft_compiler.saving.save import owned


class Accelerator(Protocol):
    """What is asked of an `accelerate.Accelerator`."""

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes."""
        ...

    def register_save_state_pre_hook(self, hook: Any) -> Any:
        """Has `hook(models, weights, folder)` called before a state is saved."""
        ...

    def register_load_state_pre_hook(self, hook: Any) -> Any:
        """Has `hook(models, folder)` called before a state is loaded."""
        ...


def save_insertions_only(accelerator: Accelerator) -> None:
    """Makes `save_state` and `load_state` of an accelerator leave out the bases of compiled models.

    Each prepared model that is compiled, or holds one that is, has a file of its own,
    `inserted_0.safetensors` and so on; all else is saved as ever. Call it once, before either.
    """

    def write(models: list[nn.Module], weights: list[dict[str, Tensor]], folder: str) -> None:
        for index in reversed(range(len(weights))):
            if any(compiled_in(models[index])):
                state = without_bases(models[index], weights.pop(index))
                if accelerator.is_main_process:
                    save_file(owned(state), _file(folder, index))

    def read(models: list[nn.Module], folder: str) -> None:
        for index in reversed(range(len(models))):
            if any(compiled_in(models[index])):
                models.pop(index).load_state_dict(load_file(_file(folder, index)))

    accelerator.register_save_state_pre_hook(write)
    accelerator.register_load_state_pre_hook(read)


def _file(folder: str, index: int) -> Path:
    return Path(folder) / f"inserted_{index}.safetensors"
