"""What stands around an attention and is none: short convolutions of its keys, learned weights of states."""

import torch
import torch.nn.functional as F  # noqa: N812  (the field's name for it)
from torch import Tensor, nn

from peft_compiler.analysis.find_sites import find_sites
from peft_compiler.site import Role, Site

HEADS, WIDTH, KERNEL = 2, 4, 3
HIDDEN = HEADS * WIDTH


class ShortConvolution(nn.Module):
    """To each position is added what a few before it were, channel by channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.taps = nn.Conv1d(channels, channels, KERNEL, groups=channels, padding=KERNEL - 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.taps(x.mT)[..., : x.shape[1]].mT


class LearnsItsTaps(nn.Module):
    """The same, spelt out: a projection of the stream makes taps that the channels of a head share."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.taps = nn.Linear(HIDDEN, channels // WIDTH * KERNEL)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        near = F.pad(y.mT, (KERNEL - 1, 0)).unfold(-1, KERNEL, 1).transpose(1, 2)
        taps = self.taps(x).unflatten(-1, (-1, 1, KERNEL))
        return y + (near.unflatten(2, (-1, WIDTH)) * taps).sum(dim=-1).flatten(2)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.both = nn.Linear(HIDDEN, 2 * HIDDEN)
        self.near, self.beside = ShortConvolution(2 * HIDDEN), ShortConvolution(HIDDEN)
        self.up, self.down = nn.Linear(HIDDEN, 3 * HIDDEN), nn.Linear(3 * HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        keys, values = self.near(self.both(x)).chunk(2, -1)
        q, k, v = (part.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2) for part in (self.a(x), keys, values))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.beside(self.down(F.relu(self.up(x))))


class ChoosesAmongLayers(nn.Module):
    """Each layer is given what a learned query finds among the states of the layers before."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.queries = nn.Parameter(torch.randn(3, HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        states = [x]
        for layer, query in zip(self.layers, self.queries, strict=True):
            before = torch.stack(states, 2)
            asked = query.expand(*before.shape[:2], 1, HIDDEN)
            chosen = F.scaled_dot_product_attention(asked, F.normalize(before, dim=-1), before)
            states.append(layer(chosen.squeeze(2)))
        return states[-1]


def of(sites: tuple[Site, ...], role: Role) -> list[tuple[str, bool]]:
    return [(site.path, site.cross) for site in sites if site.role is role]


def test_keys_and_values_are_told_through_a_short_convolution() -> None:
    sites = find_sites(Layer(), torch.randn(2, 5, HIDDEN))
    rows = {site.role: str(site.rows) for site in sites if site.path == "both"}
    assert rows == {Role.KEY: "[0:8] of 16", Role.VALUE: "[8:16] of 16"}
    assert of(sites, Role.ATTENTION_OUTPUT) == [("o", False)]  # the keys come from the stream itself


def test_keys_and_values_are_told_through_a_convolution_with_learned_taps() -> None:
    class Learns(Layer):
        def __init__(self) -> None:
            super().__init__()
            self.learns = LearnsItsTaps(2 * HIDDEN)

        def forward(self, x: Tensor) -> Tensor:
            keys, values = self.learns(self.both(x), x).chunk(2, -1)
            q, k, v = (y.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2) for y in (self.a(x), keys, values))
            return x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    sites = find_sites(Learns(), torch.randn(2, 5, HIDDEN))
    rows = {site.role: str(site.rows) for site in sites if site.path == "both"}
    assert rows == {Role.KEY: "[0:8] of 16", Role.VALUE: "[8:16] of 16"}
    assert "learns.taps" not in {site.path for site in sites}
    (core,) = [site for site in sites if site.role is Role.ATTENTION_CORE]
    assert core.evidence[1:] == (
        "which rows of linear learns.taps are the key is unknown",
        "which rows of linear learns.taps are the value is unknown",
    )


def test_the_mean_of_a_window_that_is_never_full_tells_no_rows() -> None:
    class Windows(Layer):
        """Of each window, one half is from the window before; there is only one window."""

        def forward(self, x: Tensor) -> Tensor:
            both = self.both(x)
            window = torch.zeros(len(x), 2, x.shape[1], HIDDEN)
            window[:, 1] = both[..., HIDDEN:]
            keys = torch.cat([self.o(x), window.sum(1)], 1).unflatten(-1, (HEADS, WIDTH)).transpose(1, 2)
            q = self.a(x).unflatten(-1, (HEADS, WIDTH)).transpose(1, 2)
            return x + F.scaled_dot_product_attention(q, keys, keys).transpose(1, 2).flatten(2)

    sites = find_sites(Windows(), torch.randn(2, 5, HIDDEN))
    assert [site.path for site in sites if site.role is Role.KEY] == ["o"]
    (core,) = [site for site in sites if site.role is Role.ATTENTION_CORE]
    assert core.evidence[1] == "which rows of linear both are the key is unknown"


def test_a_short_convolution_behind_a_feed_forward_layer_is_part_of_its_branch() -> None:
    sites = find_sites(Layer(), torch.randn(2, 5, HIDDEN))
    assert of(sites, Role.UP) == [("up", False)]
    assert of(sites, Role.DOWN) == [("down", False)]
    assert of(sites, Role.FEED_FORWARD) == [("", False)]


def test_learned_weights_of_states_are_no_attention() -> None:
    sites = find_sites(ChoosesAmongLayers(), torch.randn(2, 5, HIDDEN))
    layers = [f"layers.{index}" for index in range(3)]
    assert of(sites, Role.ATTENTION_CORE) == [(layer, False) for layer in layers]
    assert of(sites, Role.KEY) == [(f"{layer}.both", False) for layer in layers]
    assert of(sites, Role.ATTENTION_OUTPUT) == [(f"{layer}.o", False) for layer in layers]
