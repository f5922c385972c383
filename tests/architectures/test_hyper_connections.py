"""Hyper-connections: several residual streams mix themselves before a branch joins them."""

import pytest
import torch
from torch import Tensor, nn

import peft_compiler as pc
from peft_compiler.site import Edge, Projection, Role

STREAMS, WIDTH, INNER = 3, 8, 16


class Layer(nn.Module):
    """A feed-forward layer between streams, (batch, positions, streams, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.tells = nn.Linear(STREAMS * WIDTH, STREAMS * (STREAMS + 2))
        self.up, self.down = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, streams: Tensor) -> Tensor:
        told = self.tells(streams.flatten(-2)).softmax(-1).unflatten(-1, (STREAMS, STREAMS + 2))
        mixing, read, join = told.split([STREAMS, 1, 1], dim=-1)
        branch = self.down(torch.relu(self.up((read * streams).sum(-2))))
        return join * branch.unsqueeze(-2) + mixing @ streams


def example() -> Tensor:
    return torch.randn(2, 5, STREAMS, WIDTH, generator=torch.Generator().manual_seed(0))


def test_a_branch_joins_mixed_streams() -> None:
    sites = pc.find_sites(Layer(), example())
    roles = {site.role: site.path for site in sites if isinstance(site.place, Projection)}
    assert roles[Role.UP] == "up"
    assert roles[Role.DOWN] == "down"
    [joins] = (site for site in sites if site.role is Role.FEED_FORWARD)
    assert isinstance(joins.place, Edge)
    # Before it is spread over the streams: an adapter reads what the branch gives, not each share of it.
    assert joins.place.anchor.op == "unsqueeze"


def test_adapters_join_with_the_branch() -> None:
    torch.manual_seed(0)
    model = Layer().eval()
    tuned = pc.compile(model, "adapters width=4 after FFN", example())
    report = pc.verify(tuned)
    assert report.ok, str(report)
    inside: list[Tensor] = []
    tuned.inserted.feed_forward_adapter.register_forward_pre_hook(lambda _, given: inside.append(given[0]))
    tuned(example())
    assert inside[0].shape == (2, 5, WIDTH)


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("pfeiffer adapters width=4", "no sum to read: take an adapter"),
        ("parallel adapters width=4", "the stream that the sub-layer leaves does not reach the Layer"),
    ],
)
def test_what_needs_one_stream_is_refused(spec: str, problem: str) -> None:
    with pytest.raises(pc.PlanError, match=problem):
        pc.plan(Layer(), spec, example())
