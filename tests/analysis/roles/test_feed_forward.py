"""Feed-forward layers are told by what lies between two projections, and where they join the stream."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from peft_compiler.analysis.find_sites import find_sites
from peft_compiler.site import Edge, Role, Site

WIDTH, INNER = 4, 6


class Layer(nn.Module):
    """Four projections, and a branch that puts them to use."""

    def __init__(self, branch: Callable[["Layer", Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, INNER), nn.Linear(WIDTH, INNER)
        self.c, self.d = nn.Linear(INNER, WIDTH), nn.Linear(INNER, WIDTH)
        self.deep = nn.Conv1d(WIDTH, INNER, 3, padding=1)
        self.alone = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(self, x)


def sites_of(branch: Callable[[Layer, Tensor], Tensor]) -> tuple[Site, ...]:
    return find_sites(Layer(branch), torch.ones(2, 5, WIDTH))


def paths(branch: Callable[[Layer, Tensor], Tensor]) -> dict[str, str]:
    return {
        site.path: site.role.value.removeprefix("feed_forward.") for site in sites_of(branch) if site.path
    }


@pytest.mark.parametrize(
    ("branch", "roles"),
    [
        (lambda layer, x: layer.c(F.relu(layer.a(x))), {"a": "up", "c": "down"}),
        (lambda layer, x: layer.c(F.silu(layer.a(x)) * layer.b(x)), {"a": "gate", "b": "up", "c": "down"}),
        (lambda layer, x: layer.c(layer.a(x) * layer.b(x).sigmoid()), {"a": "up", "b": "gate", "c": "down"}),
        (
            lambda layer, x: layer.c(0.5 * (y := layer.a(x)) * (1 + torch.tanh(y + y**3))),
            {"a": "up", "c": "down"},
        ),
        (
            lambda layer, x: F.layer_norm(layer.c(F.relu(layer.a(F.layer_norm(x, (WIDTH,))))), (WIDTH,)),
            {"a": "up", "c": "down"},
        ),
    ],
    ids=["plain", "gate first", "gate second", "gelu written out", "normalised twice"],
)
def test_up_gate_and_down(branch: Callable[[Layer, Tensor], Tensor], roles: dict[str, str]) -> None:
    assert paths(branch) == roles


def test_two_projections_without_a_nonlinearity_are_no_feed_forward_layer() -> None:
    assert Role.UP not in {site.role for site in sites_of(lambda layer, x: layer.c(layer.a(x)))}


def test_a_feed_forward_layer_may_lie_between_two_more_projections() -> None:
    class Narrow(Layer):
        """Experts of a narrower stream stand so, in a sum."""

        def __init__(self) -> None:
            super().__init__(lambda _, x: x)
            self.into, self.out = nn.Linear(WIDTH + 1, WIDTH), nn.Linear(WIDTH, WIDTH + 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.into(x)
            return x + self.out(self.c(F.relu(self.a(y))) + self.d(F.relu(self.b(y))))

    sites = find_sites(Narrow(), torch.ones(2, 5, WIDTH + 1))
    assert [(site.role, site.path) for site in sites] == [
        (Role.UP, "a"),
        (Role.DOWN, "c"),
        (Role.UP, "b"),
        (Role.DOWN, "d"),
        (Role.FEED_FORWARD, ""),
    ]
    told = [site.evidence for site in sites[:4]]
    assert told[:2] == [("linear a → relu → linear c",), ("linear c → add → linear out",)]
    assert told[2:] == [("linear b → relu → linear d",), ("linear d → add → linear out",)]


def test_a_branch_that_mixes_positions_is_a_mixer() -> None:
    def branch(layer: Layer, x: Tensor) -> Tensor:
        return layer.c(F.relu(layer.a(x)).cumsum(1))

    roles = {site.path: site.role for site in sites_of(branch) if site.path}
    assert roles == {"a": Role.MIXER_INPUT, "c": Role.MIXER_OUTPUT}
    assert Role.MIXER in {site.role for site in sites_of(branch)}


def test_a_wide_convolution_mixes_positions() -> None:
    def branch(layer: Layer, x: Tensor) -> Tensor:
        return layer.c(F.relu(layer.deep(x.transpose(1, 2)).transpose(1, 2)))

    assert {site.path: site.role for site in sites_of(branch) if site.path} == {
        "deep": Role.MIXER_INPUT,
        "c": Role.MIXER_OUTPUT,
    }


def test_a_convolution_of_a_sum_alone_is_no_mixer() -> None:
    def branch(layer: Layer, x: Tensor) -> Tensor:
        return layer.alone((x + layer.c(F.relu(layer.a(x)))).mT).mT

    model = nn.Sequential(Layer(branch), Layer(branch))
    sites = find_sites(model, torch.ones(2, 5, WIDTH))
    roles = {site.path: site.role for site in sites if site.role not in (Role.BLOCK, Role.FEED_FORWARD)}
    assert roles == {"0.a": Role.UP, "0.c": Role.DOWN, "1.a": Role.UP, "1.c": Role.DOWN}


def test_layers_that_are_summed_join_as_one() -> None:
    def branch(layer: Layer, x: Tensor) -> Tensor:
        return layer.c(F.relu(layer.a(x))) + layer.d(F.relu(layer.b(x)))

    sites = sites_of(branch)
    (edge,) = [site for site in sites if site.role is Role.FEED_FORWARD]
    assert isinstance(edge.place, Edge)
    assert edge.place.operand == 1  # of the add to the stream: in the sum, it would be 0 or 1 of another add
    assert [site.path for site in sites if site.role is Role.DOWN] == ["c", "d"]


def test_two_layers_side_by_side_join_one_after_the_other() -> None:
    class SideBySide(Layer):
        def forward(self, x: Tensor) -> Tensor:
            return x + self.c(F.relu(self.a(x))) + self.d(F.relu(self.b(x)))

    sites = find_sites(SideBySide(lambda _, x: x), torch.ones(2, 5, WIDTH))
    edges = [site.place for site in sites if site.role is Role.FEED_FORWARD]
    assert [edge.operand for edge in edges if isinstance(edge, Edge)] == [1, 1]
    assert len({edge.anchor for edge in edges if isinstance(edge, Edge)}) == 2


class Neighbours(nn.Module):
    """Attention, a branch with a depthwise convolution as in SegFormer, and a third branch if wanted."""

    def __init__(self, third: bool) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.o = nn.Linear(WIDTH, WIDTH)
        self.a, self.c = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)
        self.near = nn.Conv1d(INNER, INNER, 3, padding=1, groups=INNER)
        self.b, self.d = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)
        self.third = third

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.o(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))
        x = x + self.c(F.gelu(self.near(self.a(x).mT).mT))
        return x + self.d(F.gelu(self.b(x))) if self.third else x


@pytest.mark.parametrize("third", [False, True], ids=["between attentions", "beside a feed-forward layer"])
def test_a_depthwise_convolution_mixes_only_beside_a_feed_forward_layer(third: bool) -> None:
    model = nn.Sequential(Neighbours(third), Neighbours(third))
    roles = {site.path: site.role for site in find_sites(model, torch.ones(2, 5, WIDTH))}
    outer, inner = (Role.UP, Role.DOWN) if not third else (Role.MIXER_INPUT, Role.MIXER_OUTPUT)
    assert all((roles[f"{layer}.a"], roles[f"{layer}.c"]) == (outer, inner) for layer in (0, 1))
