"""Fusing: adapters that were saved before take their places in an AdapterFusion."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

from peft_compiler.errors import InterchangeError
from peft_compiler.interchange.fingerprint import Fingerprint
from peft_compiler.interchange.load import read_header, read_manifest
from peft_compiler.interchange.manifest import MANIFEST, TENSORS
from peft_compiler.lowering.compilation import compilation_of
from peft_compiler.methods import AdapterFusion, PfeifferAdapter
from peft_compiler.plan import Insertion
from peft_compiler.spec.read import read_spec

PARTS = ("down.weight", "down.bias", "up.weight", "up.bias")
"""The tensors of an adapter."""


def fuse(tuned: nn.Module, folders: Mapping[str, str | Path]) -> None:
    """Copies saved adapters into the fusions of `tuned`, in place; everything else stays as it was.

    Args:
        tuned: A compiled model with an `adapter fusion`.
        folders: For each name in the fusion, what `save` wrote of a model with Pfeiffer adapters
            at the same places.

    Raises:
        PeftCompilerError: If `tuned` is not a compiled model.
        InterchangeError: If an adapter does not fit; every reason is listed, and nothing is copied.
    """
    places = {name: dict(_places(tuned, name)) for name in _fused_names(tuned)}
    problems = [f"'{name}' is in a fusion, but no folder is given for it" for name in places.keys() - folders]
    problems += [f"'{name}' is given, but in no fusion of this model" for name in folders.keys() - places]
    for name in places.keys() & folders:
        folder = Path(folders[name])
        problems += (f"'{name}' ({folder}): {fault}" for fault in _faults(tuned, folder, places[name]))
    if problems:
        raise InterchangeError("the adapters cannot be fused", sorted(problems))
    with torch.no_grad():
        for name, folder in folders.items():
            saved = load_file(Path(folder) / TENSORS)
            for source, place in places[name].items():
                place.copy_(saved[source])


def _fusions(tuned: nn.Module) -> Iterator[tuple[Insertion, AdapterFusion]]:
    for insertion in compilation_of(tuned).plan.insertions:
        if isinstance(insertion.method, AdapterFusion):
            yield insertion, insertion.method


def _fused_names(tuned: nn.Module) -> dict[str, None]:
    """Returns the names of all adapters in fusions, in order."""
    return dict.fromkeys(name for _, method in _fusions(tuned) for name in method.adapters)


def _faults(tuned: nn.Module, folder: Path, places: Mapping[str, Tensor]) -> Iterator[str]:
    """Yields why the adapter in a folder cannot take its places."""
    try:
        manifest, header = read_manifest(folder / MANIFEST), read_header(folder / TENSORS)
    except InterchangeError as error:
        yield str(error)
        return
    base = Fingerprint.of(tuned, compilation_of(tuned).weights_digest)
    yield from manifest.base.differences(base)
    if manifest.base.weights != base.weights:
        yield "the values of the base's weights are not those of the adapter's base"
    rules = (rule.use for rule in read_spec(manifest.spec).rules)
    saved = {rule.activation for rule in rules if isinstance(rule, PfeifferAdapter)}
    if others := sorted(saved - {method.activation for _, method in _fusions(tuned)}):
        yield f"its adapters have activation={others[0]}, the fusion has another"
    for source, place in places.items():
        if source not in header:
            yield f"{source} is missing from {TENSORS}"
        elif header[source].shape != tuple(place.shape):
            yield f"{source} has the shape {header[source].shape}, the fusion has {tuple(place.shape)}"


def _places(tuned: nn.Module, name: str) -> Iterator[tuple[str, Tensor]]:
    """Yields the name under which each tensor of an adapter was saved, and where it goes."""
    fused, single = (method.model_fields["kind"].default for method in (AdapterFusion, PfeifferAdapter))
    for insertion, method in _fusions(tuned):
        if name not in method.adapters:
            continue
        adapter = tuned.get_submodule(f"{insertion.path}.adapters.{name}")
        before, _, leaf = insertion.path.rpartition(".")
        for part in PARTS:
            source = f"{before}.{leaf.replace(fused, single)}.{part}"
            yield source, adapter.get_buffer(part.replace(".", "_"))
