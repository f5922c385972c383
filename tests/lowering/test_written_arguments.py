"""A forward that writes to a list or dict which it was given does so when it is rewritten."""

from typing import Any

import torch
from torch import Tensor, nn

import peft_compiler as pc
from peft_compiler.lowering.emit import emit, tidy
from peft_compiler.lowering.trace import LocalTracer
from tests import zoo
from tests.test_compiling import stir


class Block(nn.Module):
    """A block that leaves its states to whoever called it."""

    def __init__(self) -> None:
        super().__init__()
        self.block = zoo.HandmadeBlock()
        self.out = nn.Linear(zoo.HIDDEN, zoo.HIDDEN)

    def forward(self, x: Tensor, states: list[Tensor], named: dict[str, Any]) -> Tensor:
        x = x + self.out(self.block(x))
        states.append(x)
        named["last"] = x
        named.setdefault("first", x)
        named["blocks"][0] = len(states)
        return x


class Handing(nn.Module):
    """A block that hands lists on to a module which writes to them, one of its own among them."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.block = nn.Linear(zoo.HIDDEN, zoo.HIDDEN), Block()

    def forward(self, x: Tensor, states: list[Tensor], named: dict[str, Any]) -> Tensor:
        states.append(x)
        x = x + self.block(self.out(x), states, named=named)
        states[0] = states[-1] * 2
        own: list[Tensor] = []
        x = x + self.block(x, own, named)
        states.append(own[0])
        return x + own.pop()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(zoo.VOCABULARY, zoo.HIDDEN)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, ids: Tensor) -> dict[str, Any]:
        x, states, named = self.tokens(ids), [], {"blocks": [0]}
        for block in self.blocks:
            x = block(x, states, named)
        return {"states": torch.stack(states), "blocks": named["blocks"][0]} | {
            key: named[key] for key in ("first", "last")
        }


IDS = torch.randint(3, zoo.VOCABULARY, (2, 5), generator=torch.Generator().manual_seed(0))


def test_what_is_written_is_there_for_the_caller() -> None:
    torch.manual_seed(0)
    base = Model().eval()
    tuned = pc.compile(base, "deep prompts length=2; lora r=2 on linear", {"ids": IDS})
    with torch.no_grad():
        given, known = tuned(IDS), base(IDS)
    assert given["blocks"] == known["blocks"] == 2
    assert torch.equal(given["states"][0], given["first"])
    assert torch.equal(given["states"][1], given["last"])
    stir(tuned)
    with torch.no_grad():
        assert not torch.allclose(tuned(IDS)["states"], known["states"])
    assert pc.verify(tuned).ok


def test_what_is_written_below_is_seen_and_handed_on() -> None:
    torch.manual_seed(0)
    handing, x = Handing().eval(), torch.randn(1, 3, zoo.HIDDEN)
    graph = LocalTracer(handing).trace(Handing.forward, (x, [x], {"blocks": [0]}), {})
    tidy(graph)
    _, run = emit(graph)
    for _ in range(2):
        found, expected = ([x], {"blocks": [0]}), ([x], {"blocks": [0]})
        torch.testing.assert_close(run(handing, x, *found), handing(x, *expected))
        assert len(found[0]) == len(expected[0]) == 4
        torch.testing.assert_close(found[0], expected[0])
        torch.testing.assert_close(found[1], expected[1])
