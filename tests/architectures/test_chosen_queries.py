"""Queries that attend only if they are chosen: which ones is known in no run but the one at hand."""

import pytest
import torch
from torch import Tensor, nn

import peft_compiler as pc
from peft_compiler.role import Role
from tests.test_compiling import stir

HEADS, WIDTH, LENGTH, CHOSEN = 2, 4, 6, 3
HIDDEN = HEADS * WIDTH


class ChosenQueries(nn.Module):
    """Of each head, the queries with the largest sum of scores; the others give the mean of the values."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (HEADS, WIDTH)).transpose(1, 2).flatten(0, 1)
            for project in (self.a, self.b, self.c)
        )
        chosen = (q @ k.mT).sum(-1).topk(CHOSEN)[1]
        rows = self.rows(q)
        mixed = v.mean(1, keepdim=True).expand(v.shape).clone()
        mixed[rows, chosen] = self.attend(q[rows, chosen], k, v)
        return x + self.d(mixed.unflatten(0, (-1, HEADS)).transpose(1, 2).flatten(2))

    def rows(self, q: Tensor) -> Tensor:
        return torch.arange(len(q)).unsqueeze(-1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT).softmax(-1) @ v


class ShuffledHeads(ChosenQueries):
    """Of which example and head the queries are is not known either."""

    def rows(self, q: Tensor) -> Tensor:
        return q.sum((1, 2)).argsort().unsqueeze(-1)


class BySelect(ChosenQueries):
    """The same queries in every head, chosen by the op that takes whole slices."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (HEADS, WIDTH)).transpose(1, 2) for project in (self.a, self.b, self.c)
        )
        chosen = q.sum((0, 1, 3)).topk(CHOSEN)[1]
        mixed = v.mean(2, keepdim=True).expand(v.shape).clone()
        mixed[:, :, chosen] = self.attend(q.index_select(dim=2, index=chosen), k, v)
        return x + self.d(mixed.transpose(1, 2).flatten(2))


def rows_of_queries(model: nn.Module) -> str:
    sites = pc.find_sites(model, torch.randn(3, LENGTH, HIDDEN))
    return str([site.rows for site in sites if site.role is Role.QUERY])


@pytest.mark.parametrize("kind", [ChosenQueries, BySelect])
def test_chosen_queries_come_from_every_row(kind: type[nn.Module]) -> None:
    assert rows_of_queries(kind()) == "[None]"


def test_what_depends_on_an_unknown_index_is_not_found() -> None:
    with pytest.raises(pc.PlanError, match="names q, of which this model has none"):
        pc.plan(ShuffledHeads(), "lora r=2 on q", torch.randn(3, LENGTH, HIDDEN))


@pytest.mark.parametrize("kind", [ChosenQueries, BySelect])
def test_every_promise_is_kept(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, LENGTH, HIDDEN)
    report = pc.verify(pc.compile(kind(), "lora r=2 on q,v; deep prompts length=3", x))
    assert report.ok, str(report)


def test_the_chosen_queries_see_the_prompts() -> None:
    torch.manual_seed(0)
    base, x = ChosenQueries(), torch.randn(3, LENGTH, HIDDEN)
    tuned = pc.compile(base, "deep prompts length=3", x)
    stir(tuned)
    prompts = tuned.get_submodule("inserted.core_deep_prompts")

    class Expected(ChosenQueries):
        def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = (
                tensor.expand(len(x), -1, -1, -1).flatten(0, 1) for tensor in (prompts.keys, prompts.values)
            )
            return super().attend(q, torch.cat([keys, k], 1), torch.cat([values, v], 1))

    expected = Expected()
    expected.load_state_dict(base.state_dict())
    torch.testing.assert_close(tuned(x), expected(x))
