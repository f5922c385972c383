"""What no gradient comes to is told as a place, with the reason, and no rule means it."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import peft_compiler as pc
from peft_compiler.analysis.roles.dead_ends import NO_GRADIENT, NO_OUTPUT
from peft_compiler.cli.sites import explanation
from peft_compiler.site import Role

HIDDEN, HEADS, LENGTH, LAYERS = 8, 2, 5, 2
INPUT = torch.ones(2, LENGTH, HIDDEN)
SPEC = "lora r=2 on q,v; adapters width=2 after FFN; deep prompts length=3"


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))
        self.up, self.down = nn.Linear(HIDDEN, 12), nn.Linear(12, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for each in (self.a, self.b, self.c))
        x = x + self.d(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))
        return x + self.down(self.up(x).relu())


class TwoStreams(nn.Module):
    """Each layer of the second stream is read by the next layer of the first: the last one by none."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleList(Attends() for _ in range(LAYERS))
        self.second = nn.ModuleList(Attends() for _ in range(LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        y = x.flip(1)
        for first, second in zip(self.first, self.second, strict=True):
            x = first(x + y)
            y = second(y)
        return x


class Coded(nn.Module):
    """Gives codes, and what a decoder makes of the codes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.book, self.head = Attends(), nn.Embedding(HIDDEN, HIDDEN), nn.Linear(HIDDEN, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        codes = self.encoder(x).argmax(-1)
        return codes, self.head(self.book(codes))


class Detached(Coded):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).detach())


@dataclass
class Box:
    held: Tensor


class LeftInABox(Coded):
    """What it returns is no container that torch knows."""

    def forward(self, x: Tensor) -> Box:
        return Box(self.encoder(x))


class LeftInABuffer(Coded):
    """The state is written through a view of a part."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", torch.zeros(2, 2, LENGTH, HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        self.state[0].copy_(self.encoder(x))
        return self.head(x)


class WrittenLater(Coded):
    """What is returned is older than what was written to it."""

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        out[:, 1:].copy_(self.encoder(x)[:, 1:])
        return out


def dead_ends(model: nn.Module) -> dict[str, str | None]:
    return {site.name: site.dead_end for site in pc.find_sites(model, INPUT)}


def test_the_last_layer_of_a_stream_that_nobody_reads_is_told() -> None:
    dead = {name: why for name, why in dead_ends(TwoStreams()).items() if why is not None}
    assert set(dead.values()) == {NO_OUTPUT}
    assert {name.rpartition(":")[0] for name in dead} == {
        "second.1",
        *(f"second.1.{inner}" for inner in ("a", "b", "c", "d", "up", "down")),
    }
    assert {role for role in Role if f"second.1:{role}" in dead} == {
        Role.ATTENTION_CORE,
        Role.ATTENTION,
        Role.FEED_FORWARD,
        Role.BLOCK,
    }


def test_no_rule_means_it() -> None:
    torch.manual_seed(0)
    tuned = pc.compile(TwoStreams(), SPEC, INPUT + torch.randn(INPUT.shape))
    paths = {path for path, module in tuned.named_modules() if path.endswith("inserted")}
    assert not [path for path in paths if path.startswith("second.1")]
    assert [path for path in paths if path.startswith("second.0")]
    report = pc.verify(tuned)
    assert report.ok, str(report)


@pytest.mark.parametrize("kind", [Coded, Detached])
def test_what_only_codes_come_of_gets_no_gradient(kind: type[nn.Module]) -> None:
    dead = dead_ends(kind())
    assert dead["encoder.a:attention.query"] == NO_GRADIENT
    assert dead["head:head"] is None


@pytest.mark.parametrize("kind", [LeftInABox, LeftInABuffer, WrittenLater])
def test_what_the_run_leaves_is_an_output(kind: type[nn.Module]) -> None:
    assert dead_ends(kind())["encoder.a:attention.query"] is None


def test_a_plan_says_why_nothing_is_there() -> None:
    with pytest.raises(pc.PlanError) as error:
        pc.plan(Coded(), "lora r=2 on q; lora r=2 in layers 0", INPUT)
    assert str(error.value) == (
        "the spec does not fit this model\n"
        "  rule 1 (lora) names q, of which this model has none that a gradient comes to\n"
        f"    'encoder.a': {NO_GRADIENT}\n"
        "  rule 2 (lora) names layers 0, out of range\n"
        "    no layers were found in this model"
    )


def test_a_place_is_explained_with_it() -> None:
    (site,) = [each for each in pc.find_sites(Coded(), INPUT) if each.role is Role.QUERY]
    assert explanation(site).endswith(
        "  but no rule means it: its result reaches the outputs only as codes or indices, "
        "or detached: no gradient comes back"
    )
