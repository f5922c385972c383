"""Merging: a compiled model becomes a plain model of its original class that computes the same."""

from collections import Counter
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from peft_compiler.copies import AnyModule
from peft_compiler.dequantising import dequantise_linears
from peft_compiler.errors import MergeError
from peft_compiler.lowering.compilation import compilation_of
from peft_compiler.lowering.lower import base_of
from peft_compiler.methods import NoMerge, Wiring
from peft_compiler.methods._weights import TRANSPOSED, as_matrix
from peft_compiler.plan import Insertion
from peft_compiler.site import Place, Projection, Whole
from peft_compiler.spread import spread_like, whole_of


def merge(tuned: AnyModule, untie: bool = False, dequantise: bool = False) -> AnyModule:
    """Returns a plain model of the original class, with every insertion folded into its weights.

    Changed parameters have storage of their own, the others share it with `tuned`, which
    stays as it was. No parameter of the result requires gradients.

    Args:
        tuned: A compiled model.
        untie: Where an adapted parameter also serves another place (a head that is the
            embedding), give the adapted place a parameter of its own instead of refusing.
        dequantise: Where the base keeps weights as codes, give every such linear layer, adapted or not,
            the numbers that they stand for, in the dtype of the rest of the base, instead of refusing.

    Raises:
        PeftCompilerError: If `tuned` is not a compiled model.
        MergeError: If an insertion cannot be folded; every reason is listed.
    """
    insertions = compilation_of(tuned).plan.insertions
    merged = base_of(tuned)
    problems = [*_without_rule(insertions), *_unfit(insertions, merged, untie, dequantise)]
    if problems:
        raise MergeError("the compiled model cannot be merged", problems)
    if dequantise:
        dequantise_linears(merged)
    with torch.no_grad():
        for insertion in insertions:
            _fold(insertion, tuned.get_submodule(insertion.path), merged)
    if untie and (config := getattr(merged, "config", None)) is not None:
        # Or transformers ties the weights again when the model is next loaded.
        config.tie_word_embeddings = any(len(owners) > 1 for owners in _owners(merged).values())
    return merged


def _without_rule(insertions: tuple[Insertion, ...]) -> Iterator[str]:
    """Yields why insertions of methods without a merge rule cannot be folded, equal reasons once."""
    reasons = Counter(
        (insertion.method.kind, insertion.site.role, rule.because)
        for insertion in insertions
        if isinstance(rule := insertion.method.merge_rule(insertion.site), NoMerge)
    )
    for (kind, role, because), count in reasons.items():
        yield f"{kind} at {role} ({count}x): {because}"


def _unfit(
    insertions: tuple[Insertion, ...], model: nn.Module, untie: bool, dequantise: bool
) -> Iterator[str]:
    """Yields which weights cannot take what would be folded into them."""
    owners = _owners(model)
    for insertion in insertions:
        if isinstance(insertion.method.merge_rule(insertion.site), NoMerge):
            continue
        host = model.get_submodule(insertion.site.path)
        place = insertion.site.place
        if isinstance(place, Projection) and place.quantised:
            if not dequantise:
                yield (
                    f"{insertion.site.path}: its weight is quantised, and a sum is none of its codes: "
                    "merge(tuned, dequantise=True) gives a base of plain weights, which takes more memory"
                )
            elif place.form != "linear" or place.anchor is not None:
                yield f"{insertion.site.path}: its weight is quantised, and no linear's: dequantise it first"
            continue
        for name in _changed(insertion, host):
            parameter = host.get_parameter(name)
            path = ".".join(filter(None, (insertion.site.path, name)))
            if len(owners[id(parameter)]) > 1 and not untie:
                others = ", ".join(other for other in owners[id(parameter)].values() if other != path)
                yield f"{path}: the weight is also {others}, which would change too: merge(tuned, untie=True)"


def _owners(model: nn.Module) -> dict[int, dict[tuple[int, str], str]]:
    """Returns, by the identity of each parameter, the module and name that hold it, with the full name.

    A module that stands at several paths is one place.
    """
    owners: dict[int, dict[tuple[int, str], str]] = {}
    for path, module in cast("Iterator[tuple[str, nn.Module]]", model.named_modules()):
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            full_name = ".".join(filter(None, (path, name)))
            owners.setdefault(id(parameter), {})[id(module), name] = full_name
    return owners


def _changed(insertion: Insertion, host: nn.Module) -> Iterator[str]:
    """Yields the names, within the host, of the parameters that folding the insertion may change."""
    if insertion.wiring is Wiring.REPLACE:
        yield from (name for name, _ in host.named_parameters(remove_duplicate=False))
        return
    changed = insertion.method.folds_into
    yield from (name for part, name in _names(insertion.site.place).items() if part in changed)


def _fold(insertion: Insertion, inserted: nn.Module, model: nn.Module) -> None:
    """Puts the weights that `insertion` makes of the base's in their place in `model`."""
    host = model.get_submodule(insertion.site.path)
    rule = insertion.method.merge_rule(insertion.site)
    assert not isinstance(rule, NoMerge)
    if insertion.wiring is Wiring.REPLACE:
        for name, tensor in rule(inserted, dict(host.named_parameters())).items():
            _put(host, name, tensor.clone())
        for name, buffer in inserted.named_buffers():
            host.get_buffer(name).copy_(buffer)
        return
    place, rows = insertion.site.place, insertion.site.rows
    names = _names(place)
    whole = {part: whole_of(host.get_parameter(name).detach()).clone() for part, name in names.items()}
    # Views of the clones, laid out as the rule expects and narrowed to the site's rows.
    views = {
        part: _by_output(tensor, place) if part == "weight" else tensor for part, tensor in whole.items()
    }
    at = slice(None) if rows is None else torch.tensor(rows.indices, device=views["weight"].device)
    index = (slice(None), at) if insertion.site.experts is not None else (at,)
    given = {part: view[index] for part, view in views.items()}
    for part, tensor in rule(inserted, given).items():
        if tensor is not given[part]:
            views[part][index] = tensor
            _put(host, names[part], whole[part])


def _names(place: Place) -> dict[str, str]:
    """Returns what the module calls the parameters that a merge rule knows as weight and bias."""
    assert isinstance(place, Projection | Whole)
    # A quantised place was dequantised: it is an nn.Linear now, whatever it was before.
    quantised = isinstance(place, Projection) and place.quantised
    names = {"weight": "weight" if quantised else place.weight, "bias": place.bias}
    return {part: name for part, name in names.items() if name is not None}


def _by_output(weight: Tensor, place: Place) -> Tensor:
    """Returns a view of `weight` laid out (out, in, ...), with the experts in front where there are any."""
    if not isinstance(place, Projection):
        return weight
    matrix = as_matrix(weight, place.form, place.axes)
    return matrix.mT if place.form in TRANSPOSED else matrix


def _put(host: nn.Module, name: str, tensor: Tensor) -> None:
    """Makes `tensor` the parameter of that name, spread as the old one; whatever shared that keeps it."""
    path, _, leaf = name.rpartition(".")
    tensor = spread_like(tensor, host.get_parameter(name))
    setattr(host.get_submodule(path), leaf, nn.Parameter(tensor, requires_grad=False))
