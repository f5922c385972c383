"""Saving: the inserted parameters and how they came about, in one folder, whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

from peft_compiler.errors import InterchangeError
from peft_compiler.lowering.compilation import compilation_of
from peft_compiler.plan import Plan, is_inserted
from peft_compiler.saving.fingerprint import Fingerprint
from peft_compiler.saving.manifest import MANIFEST, TENSORS, Manifest


def save(tuned: nn.Module, folder: str | Path) -> None:
    """Writes the inserted parameters of `tuned` into `folder`, and nothing of its base.

    What a method needs for training alone, such as the MLP of a prefix, is dropped: `load`
    gives a model that computes the same without it.

    A crash or a full disk leaves the old folder or none, never a part of the new one.

    Raises:
        PeftCompilerError: If `tuned` is not a compiled model.
        InterchangeError: If the folder cannot be written, or holds something else than an adapter.
    """
    folder = Path(folder)
    compilation = compilation_of(tuned)
    tensors, plan = settled_state(tuned), compilation.plan.settled
    problems = [*_not_replaceable(folder)]
    problems += without_values(tensors)
    if problems:
        raise InterchangeError(f"{folder}: the adapter cannot be saved", problems)
    try:
        with _swapped_in(folder) as draft:
            save_file(owned(tensors), draft / TENSORS)
            write_manifest(manifest_of(tuned, plan), draft)
    except OSError as error:
        raise InterchangeError(f"{folder}: the adapter cannot be saved", [str(error)]) from error


def manifest_of(tuned: nn.Module, plan: Plan) -> Manifest:
    """Returns what says how `tuned` came about, with the plan that it has, or the one that is left of it."""
    compilation = compilation_of(tuned)
    return Manifest(
        spec=plan.spec.model_dump(mode="json", exclude_defaults=True),
        seed=compilation.seed,
        plan=plan.digest,
        base=Fingerprint.of(tuned, compilation.weights_digest),
    )


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Writes a manifest into a folder, for people to read too."""
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


def owned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns copies on the CPU: tensors that share storage cannot be written apart."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def inserted_state(tuned: nn.Module) -> dict[str, Tensor]:
    """Returns the inserted parameters and buffers by name, those that insertions share by their first one."""
    owners: dict[int, str] = {}
    for name, tensor in tuned.state_dict(keep_vars=True).items():
        if is_inserted(name):
            owners.setdefault(id(tensor), name)
    kept = set(owners.values())
    return {name: tensor for name, tensor in tuned.state_dict().items() if name in kept}


def settled_state(tuned: nn.Module) -> dict[str, Tensor]:
    """Returns what `inserted_state` would of the model that is left once training is over."""
    state = inserted_state(tuned)
    for insertion in compilation_of(tuned).plan.insertions:
        if insertion.method.settled() != insertion.method:
            prefix = f"{insertion.path}."
            state = {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}
            kept = insertion.method.settle(tuned.get_submodule(insertion.path)).state_dict()
            state |= {prefix + name: tensor for name, tensor in kept.items()}
    return state


def without_values(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Yields which tensors have no values to write."""
    for name, tensor in tensors.items():
        if tensor.is_meta:
            yield f"{name} is on the meta device and has no values"


def _not_replaceable(folder: Path) -> Iterator[str]:
    """Yields why `folder` may not be replaced."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        yield "it exists and is no folder: choose another name"
    elif folder.is_dir():
        strangers = sorted(entry.name for entry in folder.iterdir() if entry.name not in (MANIFEST, TENSORS))
        if strangers:
            yield f"it holds other files ({', '.join(strangers[:3])}), which would be lost: choose another"


@contextmanager
def _swapped_in(folder: Path) -> Generator[Path, None, None]:
    """Gives an empty folder to write into, which takes the place of `folder` once it is safe on disk."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield draft
        for path in (*draft.iterdir(), draft):
            flush(path)
        _swap(draft, folder)
        flush(folder.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _swap(draft: Path, folder: Path) -> None:
    """Renames `draft` to `folder`; what was there goes, but comes back if that fails."""
    if not folder.exists():
        draft.rename(folder)
        return
    old = draft.with_name(f"{draft.name}.old")
    folder.rename(old)
    try:
        draft.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def flush(path: Path) -> None:
    """Waits until `path` is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
