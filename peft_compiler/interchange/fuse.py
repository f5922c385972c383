"""Fusing: adapters that were saved before take their places in an AdapterFusion, or LoRAs in a mixture."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

from peft_compiler.errors import InterchangeError
from peft_compiler.interchange.load import manifest_in, read_header, tensors_of
from peft_compiler.lowering.compilation import compilation_of
from peft_compiler.methods import AdapterFusion, LoRA, Method, PfeifferAdapter, XLoRA
from peft_compiler.methods.adapter_fusion import Fusion
from peft_compiler.methods.x_lora import Mixture
from peft_compiler.plan import NAMESPACE, Insertion
from peft_compiler.saving.fingerprint import Fingerprint
from peft_compiler.site import Role
from peft_compiler.spec.read import read_spec


@dataclass(frozen=True, slots=True)
class Slot:
    """How adapters of one method take places within an insertion of another.

    Attributes:
        noun: What messages call the insertion.
        single: The method of the adapters.
        parts: The tensors of one adapter, by their names where it was saved, within an insertion, given
            which of its adapters it is.
        differences: What keeps saved adapters with some settings out of such insertions, as words.
    """

    noun: str
    single: type[Method]
    parts: Callable[[nn.Module, str, int], Mapping[str, Tensor]]
    differences: Callable[[list[Any], list[Any]], Iterator[str]]


def _of_fusion(inserted: nn.Module, name: str, _: int) -> Mapping[str, Tensor]:
    adapter = cast("Fusion", inserted).adapters[name]
    parts = ("down.weight", "down.bias", "up.weight", "up.bias")
    return {part: adapter.get_buffer(part.replace(".", "_")) for part in parts}


def _of_mixture(inserted: nn.Module, _: str, index: int) -> Mapping[str, Tensor]:
    loras = cast("Mixture", inserted).loras
    return {"down": loras.down[index], "up": loras.up[index]}


def _other_activation(saved: list[PfeifferAdapter], fusions: list[AdapterFusion]) -> Iterator[str]:
    if others := sorted({rule.activation for rule in saved} - {fusion.activation for fusion in fusions}):
        yield f"its adapters have activation={others[0]}, the fusion has another"


def _other_scale(saved: list[LoRA], mixtures: list[XLoRA]) -> Iterator[str]:
    scales = {mixture.scale for mixture in mixtures}
    for scale in sorted({rule.scale for rule in saved} - scales):
        yield f"its LoRAs are scaled by {scale:g}, the mixture's by {min(scales):g}; alpha / r says so"


SLOTS: Mapping[type[Method], Slot] = {
    AdapterFusion: Slot("fusion", PfeifferAdapter, _of_fusion, _other_activation),
    XLoRA: Slot("mixture", LoRA, _of_mixture, _other_scale),
}
"""What may stand in what."""


def fuse(tuned: nn.Module, folders: Mapping[str, str | Path]) -> None:
    """Copies saved adapters into what `tuned` has places for, in place; everything else stays as it was.

    Args:
        tuned: A compiled model with an `adapter fusion` or an `x-lora`.
        folders: For each name in there, what `save` wrote of a model with Pfeiffer adapters, or for an
            x-lora with LoRAs, at the same places.

    Raises:
        PeftCompilerError: If `tuned` is not a compiled model.
        InterchangeError: If an adapter does not fit; every reason is listed, and nothing is copied.
    """
    insertions = [i for i in compilation_of(tuned).plan.insertions if type(i.method) in SLOTS]
    noun = " or ".join(sorted({SLOTS[type(insertion.method)].noun for insertion in insertions}) or ["fusion"])
    names = dict.fromkeys(name for insertion in insertions for name in _names(insertion))
    places = {name: dict(_places(tuned, insertions, name)) for name in names}
    problems = [f"'{name}' is in a {noun}, but no folder is given for it" for name in places.keys() - folders]
    problems += [f"'{name}' is given, but in no {noun} of this model" for name in folders.keys() - places]
    for name in places.keys() & folders:
        folder = Path(folders[name])
        holding = [insertion for insertion in insertions if name in _names(insertion)]
        found = _faults(tuned, holding, folder, places[name])
        problems += (f"'{name}' ({folder}): {fault}" for fault in found)
    if problems:
        raise InterchangeError("the adapters cannot be fused", sorted(problems))
    with torch.no_grad():
        for name, folder in folders.items():
            saved = load_file(tensors_of(Path(folder)))
            for source, place in places[name].items():
                place.copy_(saved[source])


def _names(insertion: Insertion) -> tuple[str, ...]:
    """Returns the names of the adapters within an insertion."""
    return cast("AdapterFusion | XLoRA", insertion.method).adapters


def _faults(
    tuned: nn.Module, insertions: list[Insertion], folder: Path, places: Mapping[str, Tensor]
) -> Iterator[str]:
    """Yields why the adapter in a folder cannot take its places in some insertions."""
    try:
        manifest, header = manifest_in(folder), read_header(tensors_of(folder))
    except InterchangeError as error:
        yield str(error)
        return
    base = Fingerprint.of(tuned, compilation_of(tuned).weights_digest)
    yield from manifest.base.differences(base)
    if manifest.base.weights != base.weights:
        yield "the values of the base's weights are not those of the adapter's base"
    rules = [rule.use for rule in read_spec(manifest.spec).rules]
    for method in dict.fromkeys(type(insertion.method) for insertion in insertions):
        slot = SLOTS[method]
        here = [insertion.method for insertion in insertions if type(insertion.method) is method]
        yield from slot.differences([rule for rule in rules if isinstance(rule, slot.single)], here)
        for name in _of_kind(slot.single, header):
            if name not in places:
                yield f"{name} has no place in the {slot.noun}"
    for source, place in places.items():
        noun = SLOTS[type(insertions[0].method)].noun
        if source not in header:
            yield f"{source} is missing from {tensors_of(folder).name}"
        elif header[source].shape != tuple(place.shape):
            yield f"{source} has the shape {header[source].shape}, the {noun} has {tuple(place.shape)}"


def _of_kind(single: type[Method], names: Iterable[str]) -> Iterator[str]:
    """Yields those names of tensors that belong to insertions of a method."""
    roles = "|".join(sorted({role.rpartition(".")[2] for role in Role}))
    kind = single.model_fields["kind"].default
    pattern = re.compile(rf"(^|\.){NAMESPACE}\.(cross_)?({roles})_{kind}(_\d+)?\.")
    return (name for name in names if pattern.search(name))


def _places(tuned: nn.Module, insertions: list[Insertion], name: str) -> Iterator[tuple[str, Tensor]]:
    """Yields the name under which each tensor of an adapter was saved, and where it goes."""
    for insertion in insertions:
        if name in _names(insertion):
            slot, inserted = SLOTS[type(insertion.method)], tuned.get_submodule(insertion.path)
            before, _, leaf = insertion.path.rpartition(".")
            kinds = (insertion.method.kind, slot.single.model_fields["kind"].default)
            parts = slot.parts(inserted, name, _names(insertion).index(name))
            yield from ((f"{before}.{leaf.replace(*kinds)}.{part}", place) for part, place in parts.items())
