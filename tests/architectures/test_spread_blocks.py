"""A model whose blocks lie spread over lists of like parts, and whose own forward makes a cache for them."""

import pytest
import torch
from torch import Tensor, nn

import peft_compiler as pc
from peft_compiler.site import Role, Tower

HEADS, WIDTH = 2, 4
HIDDEN, LAYERS, TOKENS = HEADS * WIDTH, 3, 11


class Cache:
    """Keys and values of each layer."""

    def __init__(self) -> None:
        self.held: dict[int, tuple[Tensor, Tensor]] = {}

    def joined(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.held[layer] = keys, values
        return self.held[layer]


class Attends(nn.Module):
    """Masked by a mask that is made as large as the scores, in place."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))
        self.layer = layer

    def forward(self, x: Tensor, mask: Tensor, cache: Cache) -> Tensor:
        q, k, v = (each(x).unflatten(-1, (HEADS, WIDTH)).transpose(1, 2) for each in (self.a, self.b, self.c))
        k, v = cache.joined(self.layer, k, v)
        scores = q @ k.transpose(2, 3)
        scores.masked_fill_((mask == 0)[:, None, None].expand_as(scores), torch.finfo(scores.dtype).min)
        return self.d((scores.float().softmax(-1).type_as(scores) @ v).transpose(1, 2).flatten(2))


class InLists(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(TOKENS, HIDDEN)
        self.attentions = nn.ModuleList(Attends(layer) for layer in range(LAYERS))
        self.norms = nn.ModuleList(nn.LayerNorm(HIDDEN) for _ in range(LAYERS))
        self.inner = nn.ModuleList(
            nn.Sequential(nn.Linear(HIDDEN, 6), nn.GELU(), nn.Linear(6, HIDDEN)) for _ in range(LAYERS)
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x, cache = self.tokens(input_ids), Cache()
        for attends, norm, inner in zip(self.attentions, self.norms, self.inner, strict=True):
            x = norm(x + attends(x, attention_mask, cache))
            x = x + inner(x)
        return x


def example() -> tuple[Tensor, Tensor]:
    mask = torch.ones(2, 5, dtype=torch.long)
    mask[0, :2] = 0
    return torch.arange(10).reshape(2, 5), mask


def test_every_place_has_the_layer_that_it_is_for() -> None:
    sites = pc.find_sites(InLists(), example())
    roles = {Role.QUERY, Role.ATTENTION_CORE, Role.ATTENTION, Role.NORM, Role.UP, Role.FEED_FORWARD}
    layers = {role: [site.layer for site in sites if site.role is role] for role in roles}
    assert layers == {role: [0, 1, 2] for role in roles}
    assert {site.tower for site in sites if site.layer is not None} == {Tower.TEXT}
    assert not [site for site in sites if site.role is Role.BLOCK]


@pytest.mark.parametrize(
    "spec",
    ["LoRA r=2 on q,v; adapters width=2 after FFN; deep prompts length=3 on every layer", "prompt length=4"],
)
def test_it_keeps_every_promise(spec: str) -> None:
    torch.manual_seed(0)
    report = pc.verify(pc.compile(InLists().eval(), spec, example_inputs=example()))
    assert report.ok, str(report)
