"""Promises on what the compiled model computes, and what its gradients reach."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peft_compiler.lowering.lower import lower
from peft_compiler.methods._routing import Router, giving
from peft_compiler.plan import Insertion, Plan, is_inserted
from peft_compiler.quantised import is_quantised
from peft_compiler.site import Projection
from peft_compiler.verifying.outputs import equal, run, tensors_of
from peft_compiler.verifying.structure import listed
from peft_compiler.verifying.subject import BrokenPromiseError, Subject, moved_copy, noise

FARTHER = (0.2, 0.8, 3.2)
"""How far inserted parameters are moved where no gradient reached some: see `MOVED_BY`."""


def fresh_insertions_are_the_identity(subject: Subject) -> str:
    """Compiles again, without what does not promise identity, and compares with the base, bit for bit."""
    compilation, plan = subject.compilation, subject.compilation.plan
    identities = tuple(insertion for insertion in plan.insertions if insertion.method.starts_as_identity())
    others = Counter(insertion.method.kind for insertion in plan.insertions if insertion not in identities)
    left_out = "".join(f"; {count} {kind} left out" for kind, count in others.items())
    if not identities:
        return f"promised by none of the insertions{left_out}"
    reduced = Plan(plan.spec, identities, plan.base_parameters)
    fresh = lower(subject.base, reduced, compilation.seed, compilation.example_inputs)
    if not equal(run(fresh, subject.inputs), run(subject.base, subject.inputs)):
        raise BrokenPromiseError(f"{len(identities)} fresh insertions change the base's outputs{left_out}")
    return f"{len(identities)} fresh insertions, outputs bit for bit the base's{left_out}"


def gradients_reach_every_insertion(subject: Subject) -> str:
    """Differentiates a random projection of the outputs with respect to every inserted parameter.

    What is not reached is tried again farther away: a unit may just rest, as those of a ReLU do.
    """
    choosy = [i for i in subject.compilation.plan.insertions if not i.method.learns_from_any_input()]
    left_out = tuple(f"{insertion.path}." for insertion in choosy)
    note = "".join(f"; {n} {kind} left out" for kind, n in Counter(i.method.kind for i in choosy).items())
    named = [name for name, _ in subject.moved.named_parameters() if is_inserted(name)]
    tried = [name for name in named if not name.startswith(left_out)]
    if not tried:
        return f"promised by none of the insertions{note}"
    missed = _missed(subject.moved, subject.inputs, tried)
    for seed, deviation in enumerate(FARTHER, start=1):
        if missed:
            missed = _missed(moved_copy(subject.moved, deviation, seed), subject.inputs, missed)
    if missed:
        raise BrokenPromiseError(listed("not reached", missed))
    return f"{len(tried)} tensors reached{note}"


def _missed(model: nn.Module, inputs: Mapping[str, Any], names: list[str]) -> list[str]:
    """Returns which of the parameters get no gradient, or one that is not finite."""
    outputs = [tensor for tensor in tensors_of(model(**inputs)) if tensor.requires_grad]
    if not outputs:
        raise BrokenPromiseError("no output requires gradients")
    draws = torch.Generator().manual_seed(1)
    # Not their plain sum: after a softmax or a norm that is a constant.
    loss = torch.stack([(tensor * noise(tensor, draws)).sum().float() for tensor in outputs]).sum()
    tried = [model.get_parameter(name) for name in names]
    gradients = torch.autograd.grad(loss, tried, allow_unused=True)
    return [name for name, gradient in zip(names, gradients, strict=True) if not _reaches(gradient)]


def other_rows_are_untouched(subject: Subject) -> str:
    """Runs each fused projection on random inputs: rows of no insertion are bit for bit the base's."""
    fused = _fused(subject)
    draws = torch.Generator().manual_seed(2)
    wrong: list[str] = []
    for path, insertions in fused.items():
        ours, bases = _fused_outputs(subject, path, insertions, draws)
        rows = torch.zeros(ours.shape[0], dtype=torch.bool, device=ours.device)
        for insertion in insertions:
            assert insertion.site.rows is not None
            rows[list(insertion.site.rows.indices)] = True
        if not torch.equal(ours[~rows], bases[~rows]):
            wrong.append(f"{path} changes other rows")
        if torch.equal(ours[rows], bases[rows]):
            wrong.append(f"{path} changes nothing")
    if wrong:
        raise BrokenPromiseError(listed("fused projections broken", wrong))
    return f"{len(fused)} fused projections, delta exactly zero" if fused else "no fused projection to check"


def _reaches(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(gradient.isfinite().all()) and bool((gradient != 0).any())


def _fused(subject: Subject) -> dict[str, list[Insertion]]:
    """Returns the insertions on some rows of a projection that can be tried by itself, by path."""
    everywhere: defaultdict[str, list[Insertion]] = defaultdict(list)
    for insertion in subject.compilation.plan.insertions:
        everywhere[insertion.site.path].append(insertion)
    return {
        path: insertions
        for path, insertions in everywhere.items()
        if all(insertion.site.rows is not None and _stands_alone(insertion) for insertion in insertions)
    }


def _stands_alone(insertion: Insertion) -> bool:
    place = insertion.site.place
    return isinstance(place, Projection) and place.anchor is None and insertion.site.experts is None


def _fused_outputs(
    subject: Subject, path: str, insertions: list[Insertion], draws: torch.Generator
) -> Iterator[Tensor]:
    """Yields the output of the adapted and of the plain projection for equal random inputs, rows first."""
    base: nn.Module = subject.base.get_submodule(path)
    plain = (p for p in subject.base.parameters() if p.is_floating_point() and not is_quantised(p))
    like = next(base.parameters())
    x = noise(like.new_empty(3, insertions[0].site.width_in, dtype=next(plain, like).dtype), draws)
    ours = subject.moved.get_submodule(path)
    # By itself, a place is told nothing by its router.
    told = {router: 1.0 for router in ours.modules() if isinstance(router, Router)}
    with torch.no_grad(), giving(told):
        yield ours(x).mT
        yield base(x).mT
