"""An attention that nothing can join says why, and a plan says it before anything is changed."""

import pytest
import torch
from torch import Tensor, einsum, nn
from torch.nn import functional as F  # noqa: N812

import peft_compiler as pc
from peft_compiler.site import Core, Role, Site

HEADS, WIDTH, LENGTH = 4, 2, 6
HIDDEN = HEADS * WIDTH
BLOCK = 3


class Attends(nn.Module):
    """Heads next to the batch, one column of the scores for each key."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mix(self.heads(self.a(x)), self.heads(self.b(x)), self.heads(self.c(x)))
        return x + self.d(mixed.transpose(1, 2).flatten(2))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT).softmax(-1) @ v


class WithASink(Attends):
    """A column that is no key stands beside the keys."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.mT
        return torch.cat([scores, torch.ones_like(scores[..., :1])], -1).softmax(-1)[..., :-1] @ v


class ByColumns(Attends):
    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (k @ q.mT).softmax(-2).mT @ v


class InBlocks(Attends):
    """Queries of a block see the keys of their own and of the next one, beside each other."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (-1, BLOCK)) for part in (q, k, v))
        own, others = q @ k.mT, q @ k.roll(1, 2).mT
        shares = torch.cat([others, own], -1).softmax(-1)
        return (shares[..., :BLOCK] @ v.roll(1, 2) + shares[..., BLOCK:] @ v).flatten(2, 3)


class WithGroups(Attends):
    """The heads lie in two axes."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (part.unflatten(1, (2, -1)) for part in (q, k, v))
        return ((q @ k.mT).softmax(-1) @ v).flatten(1, 2)


class WithMoreAxes(Attends):
    """Windows lie in two axes behind the heads."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (2, 1, -1)) for part in (q, k, v))
        return ((q @ k.mT).softmax(-1) @ v).flatten(2, 4)


class InWindows(Attends):
    """Windows lie behind the heads."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (-1, BLOCK)) for part in (q, k, v))
        return ((q @ k.mT).softmax(-1) @ v).flatten(2, 3)


class WindowsFirst(Attends):
    """Windows lie before the heads, and letters leave out what is alike."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (-1, BLOCK)).permute(0, 2, 3, 1, 4) for part in (q, k, v))
        shares = einsum("...qhd,...khd->...hqk", q, k).softmax(-1)
        return einsum("...hqk,...khd->...qhd", shares, v).flatten(1, 2).transpose(1, 2)


class FusedInWindows(Attends):
    """As many windows as heads, behind the heads."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (part.repeat(1, 1, 2, 1).unflatten(2, (HEADS, BLOCK)) for part in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).flatten(2, 3)[:, :, :LENGTH]


class FusedWithGroups(Attends):
    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (part.unflatten(1, (2, -1)) for part in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).flatten(1, 2)


class InPaddedWindows(Attends):
    """Windows reach over the last key, and are padded."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = q.unflatten(2, (-1, BLOCK)), self.near(k), self.near(v)
        return ((q @ k.mT).softmax(-1) @ v).flatten(2, 3)

    def near(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 1, 1)).unfold(2, BLOCK + 2, BLOCK).transpose(-1, -2)


class Reshaped(Attends):
    """A bias is added where queries and keys lie in rows and columns of an image."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q @ k.mT).view(-1, HEADS, 2, BLOCK, 2, BLOCK)
        scores = scores + torch.ones(BLOCK, 1, 1) + torch.ones(2, 1, 1, 1)
        return scores.view(-1, HEADS, LENGTH, LENGTH).softmax(-1) @ v


class Flipped(Attends):
    """The last key has the first column."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT).flip(-1).softmax(-1) @ v.flip(2)


class Windows(Attends):
    """The values are cut into windows that overlap."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        near = F.pad((q @ k.mT).softmax(-1), (1, 1))
        return near @ F.pad(v, (0, 0, 1, 1))


class Approximated(Attends):
    """A few landmarks stand between queries and keys."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        landmarks = k.unflatten(2, (BLOCK, -1)).mean(3)
        return (q @ landmarks.mT).softmax(-1) @ ((landmarks @ k.mT).softmax(-1) @ v)


class HeadsFirst(Attends):
    """The batch lies behind the heads."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (part.transpose(0, 1) for part in (q, k, v))
        return ((q @ k.mT).softmax(-1) @ v).transpose(0, 1)


class HeadsFirstInOneAxis(Attends):
    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads, batch = q.shape[1], q.shape[0]
        q, k, v = (part.transpose(0, 1).flatten(0, 1) for part in (q, k, v))
        return ((q @ k.mT).softmax(-1) @ v).unflatten(0, (heads, batch)).transpose(0, 1)


class HeadsBehindQueries(Attends):
    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = einsum("bhqd,bhkd->bqhk", q, k)
        return einsum("bqhk,bhkd->bhqd", scores.softmax(-1), v)


class ShuffledHeads(Attends):
    """An index says of which head the queries are, which is not known."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (part.flatten(0, 1) for part in (q, k, v))
        order = q.sum((1, 2)).argsort()
        return ((q[order] @ k.mT).softmax(-1) @ v).unflatten(0, (-1, HEADS))


class Differences(Attends):
    """Of each pair of heads, the difference of the probabilities weighs the values (arXiv:2410.05258)."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        first, second = (q @ k.mT).softmax(-1).unflatten(1, (-1, 2)).unbind(2)
        wide = v.unflatten(1, (-1, 2)).transpose(2, 3).flatten(3)
        return ((first - second) @ wide).unflatten(3, (2, -1)).transpose(2, 3).flatten(1, 2)


class SharedByWindows(Attends):
    """Each window of queries sees all keys."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = q.unflatten(2, (-1, BLOCK))
        shares = einsum("bhwqd,bhkd->bhwqk", q, k).softmax(-1)
        return einsum("bhwqk,bhkd->bhwqd", shares, v).flatten(2, 3)


class FromTheRight(Attends):
    """The values are multiplied with the probabilities, not the other way round."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (v.mT @ (q @ k.mT).softmax(-1).mT).mT


class SpeltOut(Attends):
    """The softmax is written as Reformer has it."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.mT
        return (scores - scores.logsumexp(-1, keepdim=True)).exp() @ v


class SpeltOutByColumns(Attends):
    """The same, of scores that lie the other way round."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = k @ q.mT
        return (scores - scores.logsumexp(-2, keepdim=True)).exp().mT @ v


class NoSoftmax(Attends):
    """What is taken from the scores is no sum of theirs."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.mT
        return (scores - v.logsumexp(-1, keepdim=True)).exp() @ v


BLOCKS = "its scores do not go to the softmax with one column for each key, as where keys lie in blocks"
OBSTACLES = {
    Attends: None,
    WithASink: None,
    ByColumns: "its softmax runs over axis -2 of 4, not over the last one",
    SpeltOut: "its softmax is spelt out, and ends in exp",
    SpeltOutByColumns: "its softmax is spelt out, and ends in exp",
    InBlocks: BLOCKS,
    WithGroups: "it is not known which of its axes are heads, and which are windows",
    WindowsFirst: None,
    FusedInWindows: None,
    FusedWithGroups: "it is not known which of its axes are heads, and which are windows",
    WithMoreAxes: "its scores have 6 axes; expected (batch, heads, queries, keys)",
    InWindows: None,
    InPaddedWindows: None,
    Reshaped: None,
    Flipped: BLOCKS,
    Windows: "its probabilities do not go to the values with one column for each key",
    Approximated: "its values are products themselves, as where attention is approximated",
    HeadsFirst: "its heads do not lie right behind the batch",
    HeadsFirstInOneAxis: "its heads do not lie right behind the batch",
    HeadsBehindQueries: "its scores are not laid out as (batch, heads, queries, keys)",
    SharedByWindows: "its scores are not laid out as (batch, heads, queries, keys)",
    ShuffledHeads: "its 1 heads of queries cannot share 4 heads of keys",
    Differences: "its probabilities are combined on their way to the values",
    FromTheRight: (
        "its probabilities are not laid out as (batch, heads, queries, keys) where they meet the values"
    ),
}


def core_of(kind: type[nn.Module]) -> Site:
    sites = pc.find_sites(kind(), torch.ones(HEADS, LENGTH, HIDDEN))
    return next(site for site in sites if site.role is Role.ATTENTION_CORE)


@pytest.mark.parametrize("kind", OBSTACLES)
def test_an_obstacle_is_named(kind: type[Attends]) -> None:
    place = core_of(kind).place
    assert isinstance(place, Core)
    assert place.obstacle == OBSTACLES[kind]


def test_what_only_gets_another_shape_is_not_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peft_compiler.analysis.roles.replay._LARGEST_PROBE", 100)
    places = {kind: core_of(kind).place for kind in (Attends, Reshaped, WithASink)}
    # Too large to be replayed: what is not known is not claimed.
    assert {kind: place.obstacle for kind, place in places.items() if isinstance(place, Core)} == {
        Attends: None,
        Reshaped: None,
        WithASink: BLOCKS,
    }


@pytest.mark.parametrize("kind", [Attends, ByColumns, SpeltOut, SpeltOutByColumns])
def test_projections_are_told_by_the_axis_of_the_softmax(kind: type[Attends]) -> None:
    sites = pc.find_sites(kind(), torch.ones(HEADS, LENGTH, HIDDEN))
    paths = {site.role: site.path for site in sites if site.path}
    assert paths == {Role.QUERY: "a", Role.KEY: "b", Role.VALUE: "c", Role.ATTENTION_OUTPUT: "d"}


def test_an_exponential_of_other_differences_is_no_softmax() -> None:
    sites = pc.find_sites(NoSoftmax(), torch.ones(HEADS, LENGTH, HIDDEN))
    assert Role.ATTENTION_CORE not in {site.role for site in sites}


def test_a_plan_refuses_what_would_join_it() -> None:
    with pytest.raises(pc.PlanError) as error:
        pc.plan(InBlocks(), "deep prompts length=2", example_inputs=torch.ones(2, LENGTH, HIDDEN))
    assert str(error.value) == (
        "the spec does not fit this model\n"
        f"  rule 1 (deep_prompts): nothing can join this attention: {BLOCKS}\n"
        "    at '' (attention.core)"
    )
