"""A block with no stream of its own: a projection adds its output to what a mixer reads, as in Zamba."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (the name that the models imitated here use)

import peft_compiler as pc
from peft_compiler.site import Projection, Role

HEADS, HIDDEN, INNER, TOKENS = 2, 8, 6, 11


class Shared(nn.Module):
    """Attention, and right behind it a gated layer whose two halves are made by two projections together."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(2 * HIDDEN, HIDDEN, bias=False) for _ in range(3))
        self.d = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.wide, self.narrow = nn.Linear(HIDDEN, 2 * INNER), nn.Linear(HIDDEN, 2)
        self.wider = nn.Linear(2, 2 * INNER)
        self.e = nn.Linear(INNER, HIDDEN)

    def forward(self, x: Tensor, first: Tensor) -> Tensor:
        x = torch.cat([x, first], dim=-1)
        q, k, v = (each(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for each in (self.a, self.b, self.c))
        x = self.d(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        gate, up = (self.wide(x) + self.wider(self.narrow(x))).chunk(2, dim=-1)
        return self.e(F.gelu(gate) * up)


class Layer(nn.Module):
    """A mixer of the stream, or of its sum with what the shared block gives."""

    def __init__(self, shared: Shared | None) -> None:
        super().__init__()
        self.f, self.g = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.shared, self.joins = shared, nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor, first: Tensor) -> Tensor:
        mixed = x if self.shared is None else x + self.joins(self.shared(x, first))
        return x + self.g(F.silu(self.f(mixed)).cumsum(1))


class SharesABlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        shared = Shared()
        self.tokens = nn.Embedding(TOKENS, HIDDEN)
        self.layers = nn.ModuleList(Layer(each) for each in (None, shared, None, shared))

    def forward(self, input_ids: Tensor) -> Tensor:
        x = first = self.tokens(input_ids)
        for layer in self.layers:
            x = layer(x, first)
        return x


EXAMPLE = (torch.arange(10).reshape(2, 5),)


def test_roles_of_the_shared_block_and_of_the_mixers() -> None:
    sites = pc.find_sites(SharesABlock(), EXAMPLE)
    found = [
        (site.role, site.path, site.rows and site.rows.runs)
        for site in sites
        if isinstance(site.place, Projection) and site.layer is not None
    ]
    mixers = [
        [(Role.MIXER_INPUT, f"layers.{layer}.f", None), (Role.MIXER_OUTPUT, f"layers.{layer}.g", None)]
        for layer in range(4)
    ]
    gate, up = ((0, INNER),), ((INNER, INNER),)
    shared = [
        (Role.QUERY, "layers.1.shared.a", None),
        (Role.KEY, "layers.1.shared.b", None),
        (Role.VALUE, "layers.1.shared.c", None),
        (Role.ATTENTION_OUTPUT, "layers.1.shared.d", None),
        (Role.GATE, "layers.1.shared.wide", gate),
        (Role.UP, "layers.1.shared.wide", up),
        (Role.GATE, "layers.1.shared.wider", gate),
        (Role.UP, "layers.1.shared.wider", up),
        (Role.DOWN, "layers.1.shared.e", None),
    ]
    assert found == [*mixers[0], *shared, *mixers[1], *mixers[2], *mixers[3]]
    (down,) = [site for site in sites if site.role is Role.DOWN]
    assert down.evidence == ("linear layers.1.shared.e → linear layers.1.joins",)
    assert [site.path for site in sites if site.role is Role.FEED_FORWARD] == ["layers.1", "layers.3"]


def test_it_keeps_every_promise() -> None:
    torch.manual_seed(0)
    spec = "LoRA r=2 on q,v; adapters width=2 after FFN; deep prompts length=3 on every layer"
    report = pc.verify(pc.compile(SharesABlock().eval(), spec, example_inputs=EXAMPLE))
    assert report.ok, str(report)
