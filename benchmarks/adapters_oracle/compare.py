"""Compiles each case and sets it beside what the adapters library wrote."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import peft_compiler as pc
from benchmarks.adapters_oracle import models
from benchmarks.adapters_oracle.case import Case
from benchmarks.adapters_oracle.theirs import FAILURE, Slot, Theirs
from benchmarks.adapters_oracle.ties import TIES, Place, Tie
from peft_compiler.plan import Insertion
from peft_compiler.site import Role, Tower

OUTPUTS, GRADIENTS = 1e-5, 1e-4
"""The largest differences that count as equal."""
MOVED = 1e-3
"""What an adapter has to move the logits by for a comparison to prove something."""

ADAPTERS = {Role.FEED_FORWARD: "output_adapter", Role.BLOCK: "output_adapter"}
MATRICES = {Role.QUERY: "q", Role.KEY: "k", Role.VALUE: "v"}


@dataclass(frozen=True)
class Difference:
    """The largest differences of one comparison.

    Attributes:
        outputs: Of the logits, in eval and in train mode.
        gradients: Of the gradients of any trained tensor, as shares of its largest one where above one.
        moved: How far the adapter moves the logits of the base: a comparison with 0 proves nothing.
        error: Why there is nothing to compare, or None.
    """

    outputs: float = 0.0
    gradients: float = 0.0
    moved: float = 0.0
    error: str | None = None

    @property
    def equal(self) -> bool:
        """Whether both are within their bounds, and not because nothing happened."""
        close = self.outputs <= OUTPUTS and self.gradients <= GRADIENTS
        return self.error is None and close and self.moved > MOVED


def kind_of(insertion: Insertion, theirs: Theirs) -> str:
    """Returns the library's word for the kind of place that an insertion stands at."""
    site, method, kinds = insertion.site, insertion.method.kind, theirs.slots
    if method in ("loreft", "direft"):
        return "output_reft"
    if method in ("prompt", "invertible_adapter"):
        return "model"
    if site.role is Role.ATTENTION_CORE:
        pools = [kind for kind in kinds if kind.startswith("pool ")]
        where = "cross" if site.cross else "encoder" if site.tower is Tower.ENCODER else "self"
        return next((kind for kind in pools if kind.startswith(f"pool {where}")), "pool self_prefix")
    if site.role in MATRICES:
        separate = f"selfattn_lora {MATRICES[site.role]}"
        return separate if separate in kinds else "selfattn_lora"
    if site.role in (Role.UP, Role.DOWN) and method != "ia3":
        # The library's words are the other way round on Llama: which is which, the width tells.
        both = ("intermediate_lora", "output_lora")
        return next(k for k in both if theirs.weights[kinds[k][0]["lora_A"]].shape[1] == site.width_in)
    if site.role is Role.DOWN:
        return "intermediate_lora"
    if site.role is Role.ATTENTION:
        return "cross_adapter" if site.cross else "mh_adapter"
    return ADAPTERS[site.role]


def in_order(insertion: Insertion) -> tuple[Any, ...]:
    """Returns what sorts insertions as the library walks a model: the encoder first."""
    site = insertion.site
    return site.tower is Tower.DECODER, site.layer or 0, site.cross


def ties_of(ours: nn.Module, theirs: Theirs) -> Iterator[Tie]:
    """Yields every pair of tensors."""
    kinds = theirs.slots
    insertions = sorted(ours.compilation.plan.insertions, key=in_order)
    shared = kinds.get("model", (Slot({}),))[0]
    seen: Counter[tuple[str, str]] = Counter()
    adapted = sorted({i.site.role for i in insertions if i.site.role in MATRICES}, key=list(MATRICES).index)
    for insertion in insertions:
        kind = kind_of(insertion, theirs)
        group = insertion.method.kind, f"{kind} {insertion.site.role}"
        index, slots = seen[group], kinds.get(kind, ())
        seen[group] += 1
        single = kind.startswith("pool ") or kind == "model"
        slot = slots[0 if single else index]
        fused = kind == "selfattn_lora"
        matrix = (adapted.index(insertion.site.role), len(adapted)) if fused else None
        gates = kinds.get(kind.removeprefix("pool "))
        place = Place(slot, shared, index, matrix, gates[index] if gates and single else None)
        yield from TIES[insertion.method.kind](ours.get_submodule(insertion.path), insertion, place)


def compared(case: Case, model: str, label: str, folder: Path) -> Difference:
    """Returns how far the two are apart in one comparison."""
    if (folder / label / FAILURE).exists():
        return Difference(error=(folder / label / FAILURE).read_text())
    theirs, batch = Theirs.read(folder / label), models.inputs(model)
    base = models.load(model, folder / model)
    ours = pc.compile(base, case.spec, batch)
    ties = list(ties_of(ours, theirs))
    for tie in ties:
        found, expected = tie.part(theirs.weights[tie.name]).numel(), tie.mine.numel()
        if found != expected:
            return Difference(error=f"{tie.name} has {found} numbers, ours {expected}")
    left = set(theirs.gradients) - {tie.name for tie in ties}
    assert not left, f"{label}: nothing here is {sorted(left)[0]} and {len(left) - 1} more"
    trained = {id(p) for p in ours.parameters() if p.requires_grad} - {id(tie.mine) for tie in ties}
    assert not trained, f"{label}: {len(trained)} trained tensors have nothing in the library"
    with torch.no_grad():
        for tie in ties:
            tie.mine.copy_(tie.part(theirs.weights[tie.name]).reshape(tie.mine.shape))
        plain = models.seen(base(**batch).logits, batch)
        alike = load_file(folder / model / "batch.safetensors")["logits"]
        assert apart(plain, alike) <= OUTPUTS, f"{model} is not the same base on both sides"
        evaluated = models.seen(ours.eval()(**batch).logits, batch)
    logits = models.seen(ours.train()(**batch).logits, batch)
    models.loss_of(logits).backward()
    outputs = max(apart(evaluated, theirs.outputs["eval"]), apart(logits, theirs.outputs["train"]))
    gradients = max(
        apart(mine, given) / max(1.0, float(given.abs().max())) for mine, given in gradients_of(ties, theirs)
    )
    return Difference(outputs, gradients, apart(theirs.outputs["eval"], plain))


def gradients_of(ties: list[Tie], theirs: Theirs) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields our gradients with the library's."""
    for tie in ties:
        if not tie.mine.requires_grad:
            continue
        gradient = theirs.gradients.get(tie.name)
        gradient = torch.zeros_like(theirs.weights[tie.name]) if gradient is None else gradient
        mine = torch.zeros_like(tie.mine) if tie.mine.grad is None else tie.mine.grad
        yield mine, tie.pulled(tie.part(gradient).reshape(mine.shape))


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Returns the largest difference of two tensors."""
    return float((ours - theirs).detach().abs().max())
