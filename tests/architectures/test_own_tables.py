"""A forward that keeps what it computed of its parameters in a table of its own, and reads it there later."""

import pytest
import torch
from torch import Tensor, nn

import peft_compiler as pc
from peft_compiler.errors import LoweringError

HIDDEN, HEADS, LENGTH = 8, 2, 5
X = torch.randn(2, LENGTH, HIDDEN, generator=torch.Generator().manual_seed(0))
SPEC = "lora r=2 on q,v; deep prompts length=3"


class KeepsItsBias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))
        self.biases = nn.Parameter(torch.randn(HEADS, LENGTH))
        self.register_buffer("places", torch.arange(LENGTH).repeat(LENGTH, 1))
        self.kept: dict[str, Tensor] = {}

    def bias(self) -> Tensor:
        if "bias" not in self.kept:
            self.kept["bias"] = self.biases[:, self.places]
        return self.kept["bias"]

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for each in (self.a, self.b, self.c))
        return x + self.d(((q @ k.mT + self.bias()).softmax(-1) @ v).transpose(1, 2).flatten(2))


class NeverFills(KeepsItsBias):
    def __init__(self) -> None:
        super().__init__()
        self.kept["bias"] = torch.zeros(HEADS, LENGTH, LENGTH)

    def bias(self) -> Tensor:
        return self.kept["bias"]


def filled() -> KeepsItsBias:
    torch.manual_seed(0)
    model = KeepsItsBias().eval()
    with torch.no_grad():
        model(X)
    return model


def test_every_promise_is_kept_with_the_table_filled() -> None:
    report = pc.verify(pc.compile(filled(), SPEC, X))
    assert report.ok, str(report)


def test_the_graph_computes_what_is_kept_and_the_table_stays_as_it_was() -> None:
    model = filled()
    kept = model.kept["bias"]
    tuned = pc.compile(model, SPEC, X)
    before = tuned(X)
    torch.testing.assert_close(tuned.kept["bias"], kept)
    tuned.kept.clear()
    assert torch.equal(tuned(X), before)
    assert model.kept["bias"] is kept


def test_a_table_that_is_not_filled_is_told() -> None:
    with pytest.raises(LoweringError) as error:
        pc.compile(NeverFills(), SPEC, X)
    assert str(error.value) == (
        "NeverFills reads a table of tensors that its forward does not fill: keep them as buffers"
    )
