"""Quantised bases: what is inserted trains beside the codes, which stay bit for bit."""

import functools
import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from torch.testing import assert_close

import peft_compiler as pc
from benchmarks.citizen.cell import Case, Feature, NotApplicableError
from benchmarks.citizen.methods import METHODS
from peft_compiler.lowering.compilation import compilation_of
from peft_compiler.lowering.lower import digests_of
from tests.citizen.quantised_models import KINDS, quantised, tokens

STEPS = 10


def trained(kind: str, case: Case) -> None:
    """Starts where its base is, learns in ten steps of AdamW, and leaves every code as it was."""
    base = quantised(kind)
    before = digests_of(base)
    tuned = _compiled(base, case.method)
    insertions = compilation_of(tuned).plan.insertions
    if all(insertion.method.identity for insertion in insertions):
        # In train mode, as a compiled model keeps layers of codes: in eval mode bitsandbytes rounds more.
        assert_close(_logits(tuned), _logits(base.train()))
    optimiser = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-2)
    losses: list[float] = []
    for _ in range(STEPS):
        optimiser.zero_grad()
        loss = tuned(**tokens(), labels=tokens()["input_ids"]).loss
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0], losses
    assert digests_of(base) == before
    with tempfile.TemporaryDirectory() as folder:
        pc.save(tuned, folder)
        assert torch.equal(_logits(pc.load(quantised(kind), folder)), _logits(tuned.eval()))


def _compiled(base: nn.Module, method: str) -> Any:
    try:
        return pc.compile(base, METHODS[method]).eval()
    except pc.PlanError as error:
        raise NotApplicableError(" ".join(str(error).split())) from error


def _logits(model: Any) -> Tensor:
    return model(**tokens()).logits.detach()


def _feature(kind: str) -> Feature:
    holds = functools.partial(trained, kind)
    holds.__doc__ = trained.__doc__
    return Feature(kind, holds, ("llama",))


FEATURES = tuple(map(_feature, KINDS))
