"""Loading: compiles the saved spec again and fills in the saved parameters. Never unpickles."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

from peft_compiler.compiling import compile
from peft_compiler.copies import AnyModule
from peft_compiler.digests import digest
from peft_compiler.errors import InterchangeError
from peft_compiler.lowering.compilation import compilation_of
from peft_compiler.saving.checkpoint import ENTRY, as_tensor, as_text, says_no_model
from peft_compiler.saving.fingerprint import Fingerprint
from peft_compiler.saving.manifest import CHECKPOINT, MANIFEST, TENSORS, Manifest
from peft_compiler.saving.save import inserted_state

LIMIT = 16 * 2**20
"""Bytes that a manifest or the header of a tensor file may have."""

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The dtypes of the safetensors format that an insertion may have."""


class Entry(BaseModel, frozen=True, extra="forbid"):
    """What the header of a safetensors file says of one tensor."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]

    @property
    def size(self) -> int:
        """Number of bytes."""
        return self.data_offsets[1] - self.data_offsets[0]


def load(
    model: AnyModule, folder: str | Path, example_inputs: Any = None, shared_with: nn.Module | None = None
) -> AnyModule:
    """Returns `model` compiled as the saved model was, with the saved parameters.

    `model` stays as it was. The files are checked in full before anything is read into memory.

    Args:
        model: The base that the adapter was trained on.
        folder: What `save` wrote, or the checkpoint of a trainer.
        example_inputs: As for `compile`.
        shared_with: As for `compile`: a model loaded from what was saved of the one that this one
            shared its insertions with, in the same state.

    Raises:
        InterchangeError: If the folder is no adapter, not one of this base, or what is to be shared
            was saved with other values; every reason is listed.
        LoweringError: If an insertion cannot be shared.
    """
    folder = Path(folder)
    file = tensors_of(folder)
    manifest = manifest_in(folder)
    header = {
        name: entry
        for name, entry in read_header(file).items()
        if name != ENTRY and not says_no_model(name, entry.shape)
    }
    differences = [*manifest.base.differences(Fingerprint.of(model, {}))]
    if differences:
        raise InterchangeError(f"{folder}: the adapter does not belong to this base", differences)
    tuned = compile(model, manifest.spec, example_inputs, manifest.seed, shared_with=shared_with)
    problems = [*_misfits(tuned, manifest), *_mismatches(inserted_state(tuned), header, file.name)]
    if problems:
        raise InterchangeError(f"{folder}: the adapter does not fit this base", problems)
    try:
        saved = load_file(file)
    except (OSError, SafetensorError) as error:
        raise InterchangeError(f"{file}: not readable", [str(error)]) from error
    if ENTRY in saved and not torch.equal(saved[ENTRY], as_tensor(manifest)):
        raise InterchangeError(f"{folder}: {MANIFEST} and {file.name} were not written together")
    state = inserted_state(tuned)
    shared = _shared_names(tuned, shared_with)
    changed = [name for name in sorted(shared) if _differ(saved[name], state[name])]
    if changed:
        raise InterchangeError(
            f"{folder}: the adapter was saved in another state than that of the model to share with",
            [f"{name} has other values there: load both from what was saved together" for name in changed],
        )
    with torch.no_grad():
        for name in state.keys() - shared:
            state[name].copy_(saved[name])
    return tuned


def _shared_names(tuned: nn.Module, other: nn.Module | None) -> set[str]:
    """Returns the names of inserted tensors that are those of another compiled model."""
    if other is None:
        return set()
    theirs = {id(tensor) for tensor in other.state_dict(keep_vars=True).values()}
    ours = tuned.state_dict(keep_vars=True)
    return {name for name in inserted_state(tuned) if id(ours[name]) in theirs}


def _differ(saved: Tensor, tensor: Tensor) -> bool:
    return not tensor.is_meta and digest(saved) != digest(tensor)


def tensors_of(folder: Path) -> Path:
    """Returns the file of the tensors in a folder: what `save` wrote, or else that of a checkpoint."""
    checkpoint = folder / CHECKPOINT
    return checkpoint if checkpoint.exists() and not (folder / TENSORS).exists() else folder / TENSORS


def manifest_in(folder: Path) -> Manifest:
    """Returns the manifest of a folder: a file, or where a trainer wrote tensors alone, one among them.

    Raises:
        InterchangeError: If there is none, or it is no manifest; every problem is listed.
    """
    file = folder / CHECKPOINT
    if (folder / MANIFEST).exists() or not file.exists() or ENTRY not in read_header(file):
        return read_manifest(folder / MANIFEST)
    with safe_open(file, "pt") as tensors:
        text = as_text(tensors.get_tensor(ENTRY))
    return _parsed(text, file)


def read_manifest(path: Path) -> Manifest:
    """Returns what the file says.

    Raises:
        InterchangeError: If it is missing, too large, or not a manifest; every problem is listed.
    """
    return _parsed(_read(path, LIMIT), path)


def _parsed(text: bytes, path: Path) -> Manifest:
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg'].lower()}" for e in error.errors()
        ]
        raise InterchangeError(f"{path}: not the manifest of an adapter", problems) from error


def read_header(path: Path) -> Mapping[str, Entry]:
    """Returns what the header of a safetensors file says of each tensor, checked against the file's size.

    Raises:
        InterchangeError: If it is missing, cut off, or not such a file.
    """
    size = _size(path)
    length = int.from_bytes(_read(path, size, 8), "little")
    if not 2 <= length <= min(LIMIT, size - 8):
        raise InterchangeError(
            f"{path}: not a safetensors file", [f"its header would have {length} of {size} bytes"]
        )
    try:
        content = json.loads(_read(path, size, 8 + length)[8:])
        content.pop("__metadata__", None)
        header = {name: Entry.model_validate(entry) for name, entry in content.items()}
    except (ValueError, RecursionError, AttributeError) as error:
        raise InterchangeError(
            f"{path}: not a safetensors file", ["its header is no valid JSON object"]
        ) from error
    end = max((entry.data_offsets[1] for entry in header.values()), default=0)
    if 8 + length + end != size:
        raise InterchangeError(
            f"{path}: cut off or padded", [f"has {size} bytes, its header describes {8 + length + end}"]
        )
    return header


def _misfits(tuned: nn.Module, manifest: Manifest) -> Iterator[str]:
    """Yields why `tuned` is not what was saved, shapes aside."""
    compilation = compilation_of(tuned)
    if Fingerprint.of(tuned, compilation.weights_digest).weights != manifest.base.weights:
        yield "the values of the base's weights are not those of the adapter's base"
    if compilation.plan.digest != manifest.plan:
        yield "the spec now gives another plan for this base than when the adapter was saved"


def _mismatches(expected: Mapping[str, Tensor], header: Mapping[str, Entry], file: str) -> Iterator[str]:
    """Yields each tensor that is missing, not expected, or of another shape or dtype."""
    for name, tensor in expected.items():
        if name not in header:
            yield f"{name} is missing from {file}"
            continue
        entry = header[name]
        if entry.shape != tuple(tensor.shape):
            yield f"{name} has the shape {entry.shape}, the base needs {tuple(tensor.shape)}"
        elif DTYPES.get(entry.dtype) != tensor.dtype:
            yield f"{name} is {entry.dtype}, the base needs {tensor.dtype}"
        elif entry.size != tensor.nbytes:
            yield f"{name} has {entry.size} bytes, its shape and dtype need {tensor.nbytes}"
    for name in header.keys() - expected.keys():
        yield f"{name} is in {file}, but the spec inserts nothing of that name"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise InterchangeError(
            f"{path}: not readable", [f"{error.strerror}: expected what save() wrote"]
        ) from error


def _read(path: Path, limit: int, count: int = -1) -> bytes:
    """Returns the first `count` bytes, or all, of a file that has at most `limit`."""
    size = _size(path)
    if size > limit:
        raise InterchangeError(f"{path}: too large", [f"has {size} bytes, expected at most {limit}"])
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError as error:
        raise InterchangeError(
            f"{path}: not readable", [f"{error.strerror}: expected what save() wrote"]
        ) from error
