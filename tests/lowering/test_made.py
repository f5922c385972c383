"""What a forward makes itself and hands on, such as a cache, is made anew by its graph at every call."""

import pytest
import torch
from torch import Tensor, nn

from peft_compiler.errors import LoweringError
from peft_compiler.lowering.emit import emit, tidy
from peft_compiler.lowering.trace import LocalTracer


class Notes:
    """Takes tensors, and counts them."""

    def __init__(self) -> None:
        self.taken: list[Tensor] = []
        self.count = 0

    def take(self, x: Tensor) -> Tensor:
        self.taken.append(x)
        self.count = self.count + 1
        return torch.stack(self.taken).sum(0)


class Takes(nn.Module):
    def forward(self, x: Tensor, notes: Notes) -> Tensor:
        return notes.take(x)


class Makes(nn.Module):
    """Hands on an object that it made, reads what became of it, writes to it, and returns it."""

    def __init__(self) -> None:
        super().__init__()
        self.child = Takes()

    def forward(self, x: Tensor, times: int = 2) -> tuple[Tensor, Notes]:
        notes = Notes()
        for _ in range(times):
            x = self.child(x, notes=notes)
        x = x * notes.count
        notes.count = notes.count + 5
        return notes.take(x), notes


def traced(module: nn.Module, *args: object) -> tuple[LocalTracer, object]:
    tracer = LocalTracer(module)
    graph = tracer.trace(type(module).forward, args, {})
    tidy(graph)
    return tracer, emit(graph)[1]


def test_every_call_has_an_object_of_its_own_with_all_that_happens_to_it() -> None:
    module = Makes()
    _, run = traced(module, torch.ones(2))
    for x in (torch.ones(2), torch.full((3,), 2.0)):
        (expected, theirs), (found, ours) = module.forward(x), run(module, x)  # pyright: ignore
        assert torch.equal(found, expected)
        assert type(ours) is Notes
        assert (ours.count, len(ours.taken)) == (theirs.count, len(theirs.taken)) == (8, 3)


def test_what_was_watched_is_as_it_was() -> None:
    kept: list[Notes] = []

    class Keeps(Makes):
        def forward(self, x: Tensor) -> tuple[Tensor, Notes]:  # pyright: ignore
            result, notes = super().forward(x)
            kept.append(notes)
            return result, notes

    traced(Keeps(), torch.ones(2))
    assert type(kept[0]) is Notes
    assert kept[0].count == 8


class Shares(nn.Module):
    """Hands on what its class holds for all."""

    everyones = Notes()

    def __init__(self) -> None:
        super().__init__()
        self.child = Takes()

    def forward(self, x: Tensor) -> Tensor:
        return self.child(x, notes=self.everyones)


class Fills(Makes):
    """Puts a tensor into what it makes before it hands it on."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore
        notes = Notes()
        notes.take(x)
        return self.child(x, notes)


@pytest.mark.parametrize("kind", [Shares, Fills])
def test_what_is_not_new_or_not_empty_is_refused(kind: type[nn.Module]) -> None:
    with pytest.raises(LoweringError) as error:
        traced(kind(), torch.ones(2))
    assert str(error.value) == (
        f"{kind.__name__} hands on a Notes that is neither among its arguments nor made anew by itself "
        "from nothing of this call"
    )
