"""Frozen means frozen: weights, buffers, statistics, ties and the draws of the untouched parts."""

from typing import Any

import torch
from torch import Tensor, nn

import peft_compiler as pc
from benchmarks.citizen.cell import Case, Feature, NotApplicableError
from benchmarks.citizen.methods import METHODS
from peft_compiler.lowering.compilation import compilation_of
from peft_compiler.methods import Wiring
from tests import zoo
from tests.test_compiling import main_output

ARCHITECTURES = ("llama", "gpt2", "t5", "bart", "bert", "torch_encoder", "handmade")


def weights(case: Case) -> None:
    """Ten steps of AdamW leave every weight and buffer of the base as it was, bit by bit."""
    tuned = case.tuned().train()
    frozen = {
        name: tensor
        for name, tensor in (*tuned.named_parameters(), *tuned.named_buffers())
        if not tensor.requires_grad and ".inserted." not in f".{name}"
    }
    before = {name: tensor.clone() for name, tensor in frozen.items()}
    _train(case, tuned)
    changed = [name for name, tensor in frozen.items() if not torch.equal(tensor, before[name])]
    assert not changed, f"changed: {changed}"


def statistics(case: Case) -> None:
    """The running statistics of a batch norm in the base stay as they were while training."""

    class Normed(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.norm = inner, nn.BatchNorm1d(zoo.VOCABULARY)

        def forward(self, **inputs: Any) -> Tensor:
            return self.norm(main_output(self.inner(**inputs)).transpose(1, 2))

    model = Normed(case.base())
    try:
        tuned = pc.compile(model, METHODS[case.method], zoo.inputs(case.architecture)).train()
    except pc.PlanError as error:
        raise NotApplicableError(" ".join(str(error).split())) from error
    if case.method == "trained_copy":
        raise NotApplicableError("trains a copy of that very norm")
    before = {name: tensor.clone() for name, tensor in tuned.norm.named_buffers()}
    tuned(**zoo.inputs(case.architecture))
    assert all(torch.equal(before[name], tensor) for name, tensor in tuned.norm.named_buffers())


def ties(case: Case) -> None:
    """Weights that are one in the base are one in the compiled model, and the base's own."""
    base = case.base()
    try:
        tuned = pc.compile(base, METHODS[case.method])
    except pc.PlanError as error:
        raise NotApplicableError(" ".join(str(error).split())) from error
    theirs = dict(tuned.named_parameters(remove_duplicate=False))
    for name, parameter in base.named_parameters(remove_duplicate=False):
        found = theirs.get(name)
        if found is not None and not found.requires_grad:
            assert found.data_ptr() == parameter.data_ptr(), f"{name} is no longer the base's"


def draws(case: Case) -> None:
    """In training mode, dropout draws what it draws in the base, as far as no insertion draws too."""
    base, untrained = case.base().train(), case.untrained().train()
    insertions = compilation_of(untrained).plan.insertions
    if any(insertion.wiring is Wiring.ROUTED for insertion in insertions):
        raise NotApplicableError("its router reads the states of a run of its own, which draws as well")
    if not all(insertion.method.identity for insertion in insertions):
        raise NotApplicableError("is not the identity when untrained, so outputs cannot show what was drawn")
    assert torch.equal(_drawn(case, untrained), _drawn(case, base))


def _drawn(case: Case, model: nn.Module) -> Tensor:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        return main_output(model(**zoo.inputs(case.architecture)))


def _train(case: Case, tuned: nn.Module) -> None:
    optimiser = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(10):
        optimiser.zero_grad()
        main_output(tuned(**zoo.inputs(case.architecture))).square().mean().backward()
        optimiser.step()


FEATURES = (
    Feature("weights stay", weights, ARCHITECTURES),
    Feature("statistics stay", statistics, ("llama", "handmade")),
    Feature("ties stay", ties, ("gpt2", "t5", "bart")),
    Feature("same draws", draws, ("gpt2", "t5", "bart", "bert", "handmade")),
)
