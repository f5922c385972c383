"""What transformers has a model do with folders, as a compiled model does it: with its insertions alone."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

from peft_compiler.errors import InterchangeError
from peft_compiler.lowering.compilation import compilation_of
from peft_compiler.lowering.rewritten import Rewritten
from peft_compiler.plan import is_inserted
from peft_compiler.saving.checkpoint import checkpoint, without_bases
from peft_compiler.saving.manifest import CHECKPOINT, MANIFEST, TENSORS
from peft_compiler.saving.save import flush, manifest_of, owned, without_values, write_manifest

CONFIG = "config.json"
WEIGHTS_FIELD, NO_WEIGHTS = (
    "transformers_weights",
    "the folder holds what was inserted into a model, not the model itself: load the base from where it is, "
    "then take peft_compiler.load(base, folder)",
)
"""The field of a config that names the file of a model's weights, and what a checkpoint's says instead.

A model that is read from the folder stops there, with this text. Without the field it would come out
untrained, without an error.
"""


class Pretrained(Rewritten):
    """Comes before the class of a root that transformers can save."""

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        max_shard_size: int | str | None = None,
        safe_serialization: bool = True,
        **others: Any,
    ) -> None:
        """Writes a checkpoint into a folder: what was inserted, and no tensor of the base.

        `load` of the base takes the folder, and so does a trainer that resumes. Other files that are
        there stay. Unlike `save`, it keeps what is needed for training alone.

        Args:
            save_directory: The folder.
            is_main_process: Whether this process writes; the others do nothing.
            state_dict: The state of this model, where it was gathered from several processes.
            max_shard_size: Insertions are one file, whatever it is.
            safe_serialization: True: nothing is ever pickled.
            others: What else transformers can do when it saves, which is refused.

        Raises:
            InterchangeError: If the folder holds a whole model, cannot be written, or more is asked for.
        """
        if not is_main_process:
            return
        folder = Path(save_directory)
        tensors = checkpoint(self) if state_dict is None else without_bases(self, state_dict)
        problems = [*_not_writable(folder), *_refused(safe_serialization, others), *without_values(tensors)]
        if problems:
            raise InterchangeError(f"{folder}: the checkpoint cannot be saved", problems)
        try:
            _write(self, tensors, folder)
        except OSError as error:
            raise InterchangeError(f"{folder}: the checkpoint cannot be saved", [str(error)]) from error

    @classmethod
    def from_pretrained(cls, source: Any, *args: Any, **settings: Any) -> nn.Module:
        """Returns a plain model of the original class, as that one reads it.

        Raises:
            InterchangeError: If the folder holds insertions alone, which without their base are no model.
        """
        if isinstance(source, str | os.PathLike) and (Path(source) / MANIFEST).is_file():
            raise InterchangeError(f"{source}: not a {cls.original.__name__}", [NO_WEIGHTS])
        original: Any = cls.original
        return original.from_pretrained(source, *args, **settings)


def no_model(tuned: nn.Module) -> dict[str, Tensor]:
    """Returns what keeps a checkpoint from being read as a model by who brings a config of their own.

    A tensor of the base without a value has another shape than any model expects, which transformers
    refuses; its report tells each name that it does not expect, and the other one is what to do.
    """
    first = next(name for name, _ in tuned.named_parameters() if not is_inserted(name))
    return {first: torch.zeros(0), NO_WEIGHTS: torch.zeros(0)}


def _not_writable(folder: Path) -> Iterator[str]:
    """Yields why a checkpoint may not be put into a folder."""
    if folder.exists() and not folder.is_dir():
        yield "it exists and is no folder: choose another name"
    theirs = [name for name in (CONFIG, CHECKPOINT) if (folder / name).exists()]
    if theirs and not (folder / MANIFEST).exists():
        yield f"it holds another model ({', '.join(theirs)}), which would be lost: choose another"
    if (folder / TENSORS).exists():
        yield f"it holds what save() wrote ({TENSORS}), which would no longer be told apart: choose another"


def _refused(safe_serialization: bool, others: Mapping[str, Any]) -> Iterator[str]:
    """Yields what is asked for and not done."""
    if not safe_serialization:
        yield "safe_serialization=False is given: insertions are never pickled; leave it out"
    for name, value in others.items():
        if value is not None and value is not False:
            yield f"{name}={value!r} is given, which is not done for a compiled model: leave it out"


def _write(tuned: nn.Module, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Writes the files aside, then gives each its name at once: a crash leaves none in part."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".checkpoint.", dir=folder) as aside:
        draft = Path(aside)
        save_file({**owned(tensors), **no_model(tuned)}, draft / CHECKPOINT, metadata={"format": "pt"})
        write_manifest(manifest_of(tuned, compilation_of(tuned).plan), draft)
        config: Any = tuned.config
        fields = {**json.loads(config.to_json_string()), WEIGHTS_FIELD: NO_WEIGHTS}
        (draft / CONFIG).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        # The manifest first: without one, what is there would be taken for another model. The config before
        # the tensors: without it, they would be.
        for name in (MANIFEST, CONFIG, CHECKPOINT):
            flush(draft / name)
            (draft / name).replace(folder / name)
    flush(folder)
