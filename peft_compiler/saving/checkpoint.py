"""`checkpoint`: what a run has to keep to be taken up again; compiled models read it as any state.

A saved folder is the result of training and holds what `load` needs. A checkpoint lies in between:
it holds what is dropped once training is over too, such as the MLP of a prefix, and is read back
into a model that was compiled already, by `load_state_dict`. With it goes the manifest, as bytes in
a tensor, because trainers hand over tensors and nothing else: so the state of another spec or of
another base is told from this one's even where all names and shapes agree.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from peft_compiler.digests import digest
from peft_compiler.lowering.compilation import compilation_of, is_compiled
from peft_compiler.plan import NAMESPACE, is_inserted
from peft_compiler.saving.fingerprint import digest_of_weights
from peft_compiler.saving.manifest import Manifest
from peft_compiler.saving.save import inserted_state, manifest_of
from peft_compiler.spec import Spec
from peft_compiler.spec.write import to_sentence

ENTRY = f"{NAMESPACE}.manifest"
"""Name of the tensor that holds the manifest; no insertion has it, because theirs begin with a role."""


def checkpoint(tuned: nn.Module) -> dict[str, Tensor]:
    """Returns every inserted tensor of a compiled model by name, and its manifest: no tensor of the base.

    `load_state_dict` of a model that was compiled by the same spec on the same base takes it, and
    refuses it of any other. As all states it shares memory with the model.

    Raises:
        PeftCompilerError: If `tuned` is not a compiled model.
    """
    manifest = manifest_of(tuned, compilation_of(tuned).plan)
    return {**inserted_state(tuned), ENTRY: as_tensor(manifest)}


def without_bases(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the state of a model without the bases of the compiled models in it, but with their manifests.

    Raises:
        PeftCompilerError: If there is no compiled model in it.
    """
    roots = dict(compiled_in(model))
    if not roots:
        compilation_of(model)
    ours = {prefix: checkpoint(root) for prefix, root in roots.items()}
    kept = {
        name: tensor
        for name, tensor in state.items()
        if all(name[len(prefix) :] in ours[prefix] for prefix in ours if name.startswith(prefix))
    }
    return kept | {prefix + ENTRY: tensors[ENTRY] for prefix, tensors in ours.items()}


def compiled_in(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yields each compiled model in a model, which may be one itself, after the prefix of its names."""
    for path, module in model.named_modules():
        if is_compiled(module):
            yield f"{path}." if path else "", module


def as_tensor(manifest: Manifest) -> Tensor:
    """Returns the bytes of a manifest as a tensor."""
    return torch.frombuffer(bytearray(manifest.model_dump_json().encode()), dtype=torch.uint8)


def as_text(entry: Tensor) -> bytes:
    """Returns the bytes that a manifest was made a tensor of."""
    return entry.cpu().numpy().tobytes()


def says_no_model(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor only keeps a checkpoint from being taken for a model: it has no value."""
    return tuple(shape) == (0,) and not is_inserted(name)


def problems_of(tuned: nn.Module, given: Mapping[str, Tensor], assigned: bool) -> Iterator[str]:
    """Yields each reason why a compiled model may not be given a state.

    Args:
        tuned: The compiled model.
        given: The state, by its names.
        assigned: Whether its tensors are to take the places of the model's, which are then not written to.
    """
    expected, names = inserted_state(tuned), {name for name in tuned.state_dict() if is_inserted(name)}
    inserted = {name: tensor for name, tensor in given.items() if is_inserted(name) and name != ENTRY}
    if not inserted and expected:
        yield f"it holds nothing that was inserted; expected {len(expected)} tensors, as checkpoint() gives"
        return
    if ENTRY in given:
        yield from _of_another(tuned, given[ENTRY])
    for name in sorted(expected.keys() - inserted.keys()):
        yield f"{name} is missing"
    for name in sorted(inserted.keys() - names):
        yield f"{name} is not expected: the spec inserts nothing of that name"
    for name, tensor in inserted.items():
        if name in expected and tensor.shape != expected[name].shape:
            yield f"{name} has the shape {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}"
    if not assigned:
        yield from _of_other_values(tuned, given)


def left_out(tuned: nn.Module, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns what a state of insertions leaves out: the base's tensors, and other names of shared ones."""
    first: dict[int, str] = {}
    filled: dict[str, Tensor] = {}
    only_insertions = all(map(is_inserted, given))
    for name, tensor in tuned.state_dict(keep_vars=True).items():
        owner = first.setdefault(id(tensor), name)
        if name in given:
            continue
        if is_inserted(name):
            filled[name] = given[owner]
        elif only_insertions:
            filled[name] = tensor  # which torch then copies onto itself, at no cost
    return filled


def _of_another(tuned: nn.Module, entry: Tensor) -> Iterator[str]:
    """Yields how what a state was taken from differs from a compiled model."""
    try:
        theirs = Manifest.model_validate_json(as_text(entry))
    except ValidationError:
        yield f"{ENTRY} holds no manifest"
        return
    compilation = compilation_of(tuned)
    ours = manifest_of(tuned, compilation.plan)
    if theirs.plan != ours.plan:
        there, here = (to_sentence(Spec.model_validate(each.spec)) for each in (theirs, ours))
        differ = f"'{there}', this model by '{here}'" if there != here else f"'{there}' on another base"
        yield f"it is of a model compiled by {differ}"
    if compilation.weights_digest and theirs.base.weights != digest_of_weights(compilation.weights_digest):
        yield "it is of a model on a base with other weights"


def _of_other_values(tuned: nn.Module, given: Mapping[str, Tensor]) -> Iterator[str]:
    """Yields which tensors of the base a state would change, and so those of whoever shares them."""
    for name, tensor in tuned.state_dict().items():
        if is_inserted(name) or name not in given or type(tensor) is not Tensor or tensor.is_meta:
            continue
        other = given[name]
        if type(other.detach()) is not Tensor or other.is_meta or other.shape != tensor.shape:
            continue
        if digest(other.to(tensor.dtype)) != digest(tensor):
            yield f"{name} has other values: the base is frozen, and others may share it"
