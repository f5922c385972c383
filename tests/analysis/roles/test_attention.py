"""Attention is told by its dataflow, however it is written."""

from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from peft_compiler.analysis.find_sites import find_sites
from peft_compiler.site import Core, Role, Site, Tower

HEADS, WIDTH = 2, 4
HIDDEN = HEADS * WIDTH


class Attends(nn.Module):
    """Attention whose three projections have names that say nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mix(self.heads(self.a(x)), self.heads(self.b(x)), self.heads(self.c(x)))
        return x + self.d(mixed.transpose(1, 2).flatten(2))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-1, -2)).softmax(-1) @ v


class KeysFirst(Attends):
    """The scores are transposed, and the softmax runs over the other axis."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (k @ q.transpose(-1, -2)).softmax(-2).transpose(-1, -2) @ v


class ByLetters(Attends):
    """The sums are spelt out."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k)
        return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)


class AllHeadsInOneBatch(Attends):
    """Heads and batch share an axis."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch = q.shape[0]
        q, k, v = (part.flatten(0, 1) for part in (q, k, v))
        return torch.bmm(torch.bmm(q, k.mT).softmax(-1), v).unflatten(0, (batch, HEADS))


def by_role(module: nn.Module, *inputs: Tensor) -> dict[Role, Site]:
    return {site.role: site for site in find_sites(module, inputs)}


@pytest.mark.parametrize("kind", [Attends, KeysFirst, ByLetters, AllHeadsInOneBatch])
def test_every_way_to_write_attention(kind: type[Attends]) -> None:
    sites = by_role(kind(), torch.ones(3, 5, HIDDEN))
    roles = (Role.QUERY, Role.KEY, Role.VALUE, Role.ATTENTION_OUTPUT)
    assert [sites[role].path for role in roles] == ["a", "b", "c", "d"]
    core = sites[Role.ATTENTION_CORE].place
    assert isinstance(core, Core)
    assert (core.heads, core.key_heads, core.key_width, core.value_width) == (HEADS, HEADS, WIDTH, WIDTH)
    assert core.anchor.op == "softmax"


class BiasedScores(Attends):
    """The scores have something added; `bias` says what."""

    bias: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(HEADS, 1, 1))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        added = self.table if self.bias == "learned" else torch.full((1, 1, 1), -0.5, device=q.device)
        return (q @ k.mT + added).softmax(-1) @ v


class LearnedBias(BiasedScores):
    """The added value is a parameter."""

    bias = "learned"


class FixedBias(BiasedScores):
    """The added value is a constant."""

    bias = "fixed"


@pytest.mark.parametrize(("kind", "is_learned"), [(LearnedBias, True), (FixedBias, False)])
def test_a_learned_bias_is_told_from_a_fixed_one(kind: type[BiasedScores], is_learned: bool) -> None:
    core = by_role(kind(), torch.ones(3, 5, HIDDEN))[Role.ATTENTION_CORE].place
    assert isinstance(core, Core)
    assert core.learned_bias is is_learned


class OneForKeysAndValues(Attends):
    """Keys and values are the same."""

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.heads(self.a(x)), self.heads(self.b(x))
        return x + self.d(self.mix(q, k, k).transpose(1, 2).flatten(2))


def test_one_projection_may_play_two_roles() -> None:
    sites = by_role(OneForKeysAndValues(), torch.ones(3, 5, HIDDEN))
    assert (sites[Role.KEY].path, sites[Role.VALUE].path) == ("b", "b")


class LooksAtBoth(Attends):
    """One projection of keys is applied to its own states and to a memory, and serves all queries."""

    def __init__(self) -> None:
        super().__init__()
        self.b, self.c = nn.Linear(HIDDEN, WIDTH), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:  # pyright: ignore
        keys, values = (
            torch.cat([part(states).unsqueeze(1) for states in (x, memory)], 2).expand(-1, HEADS, -1, -1)
            for part in (self.b, self.c)
        )
        return x + self.d(self.mix(self.heads(self.a(x)), keys, values).transpose(1, 2).flatten(2))


def test_the_heads_of_keys_are_counted_where_their_projection_is_applied_twice() -> None:
    core = by_role(LooksAtBoth(), torch.ones(3, 5, HIDDEN), torch.ones(3, 6, HIDDEN))[Role.ATTENTION_CORE]
    assert isinstance(core.place, Core)
    assert (core.place.heads, core.place.key_heads) == (HEADS, 1)


class LooksAt(Attends):
    """Keys and values come from a second input."""

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:  # pyright: ignore
        q, k, v = self.heads(self.a(x)), self.heads(self.b(memory)), self.heads(self.c(memory))
        return x + self.d(self.mix(q, k, v).transpose(1, 2).flatten(2))


def test_keys_of_another_stream_make_it_cross_attention() -> None:
    sites = by_role(LooksAt(), torch.ones(3, 5, HIDDEN), torch.ones(3, 2, HIDDEN))
    attention = {role for role in Role if role.value.startswith("attention")}
    assert {role for role, site in sites.items() if site.cross} == attention
    assert not any(site.cross for site in by_role(Attends(), torch.ones(3, 5, HIDDEN)).values())


def test_the_stack_that_looks_is_the_decoder() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.ModuleList(Attends() for _ in range(2))
            self.second = nn.ModuleList(LooksAt() for _ in range(3))

        def forward(self, source: Tensor, target: Tensor) -> Tensor:
            for layer in self.first:
                source = layer(source)
            for layer in self.second:
                target = layer(target, source)
            return target

    sites = find_sites(Pair(), (torch.ones(3, 5, HIDDEN), torch.ones(3, 2, HIDDEN)))
    blocks = [(site.path, site.tower, site.layer) for site in sites if site.role is Role.BLOCK]
    assert blocks == [
        ("first.0", Tower.ENCODER, 0),
        ("first.1", Tower.ENCODER, 1),
        ("second.0", Tower.DECODER, 0),
        ("second.1", Tower.DECODER, 1),
        ("second.2", Tower.DECODER, 2),
    ]


def test_layers_are_counted_through_all_stacks_of_a_tower() -> None:
    class Stages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(9, HIDDEN)
            self.stages = nn.ModuleList(nn.ModuleList(Attends() for _ in range(2)) for _ in range(2))

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.tokens(tokens)
            for stage in self.stages:
                for layer in stage:
                    x = layer(x)
            return x

    sites = find_sites(Stages(), torch.ones(3, 5, dtype=torch.long))
    blocks = [(site.path, site.tower, site.layer) for site in sites if site.role is Role.BLOCK]
    assert blocks == [
        ("stages.0.0", Tower.TEXT, 0),
        ("stages.0.1", Tower.TEXT, 1),
        ("stages.1.0", Tower.TEXT, 2),
        ("stages.1.1", Tower.TEXT, 3),
    ]


class WithoutOutput(Attends):
    """What attention gives is read by two linears alike: by the next sub-layer."""

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mix(self.heads(self.a(x)), self.heads(self.b(x)), self.heads(x))
        state = mixed.transpose(1, 2).flatten(2)
        return x + self.c(state) * self.d(state).sigmoid()


def test_linears_that_read_attention_alike_are_no_output() -> None:
    assert Role.ATTENTION_OUTPUT not in by_role(WithoutOutput(), torch.randn(2, 5, HIDDEN))
