"""Layers that attend to more than their own states: joint attention, and keys of an earlier layer."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (the name that the models imitated here use)

import peft_compiler as pc
from peft_compiler.site import Role, Site

HEADS, WIDTH, LENGTH, LAYERS = 2, 4, 5, 2
HIDDEN = HEADS * WIDTH
SENTENCE = "LoRA r=2 on q,v; adapters width=4 after FFN; deep prompts length=3"


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2)


def inner() -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, 12), nn.GELU(), nn.Linear(12, HIDDEN))


class JointBlock(nn.Module):
    """Two streams with weights of their own attend to both (MMDiT, arXiv:2403.03206)."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(HIDDEN) for _ in range(2))
        self.fused = nn.ModuleList(nn.Linear(HIDDEN, 3 * HIDDEN) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN) for _ in range(2))
        self.inner = nn.ModuleList(inner() for _ in range(2))

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        streams = image, text
        parts = [
            [heads(part) for part in fused(norm(x)).chunk(3, -1)]
            for fused, norm, x in zip(self.fused, self.norms, streams, strict=True)
        ]
        q, k, v = (torch.cat(each, 2) for each in zip(*parts, strict=True))
        both = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        of_image, of_text = both[:, : image.shape[1]], both[:, image.shape[1] :]
        image, text = image + self.out[0](of_image), text + self.out[1](of_text)
        return image + self.inner[0](image), text + self.inner[1](text)


class Joint(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(JointBlock() for _ in range(LAYERS))

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        for block in self.blocks:
            image, text = block(image, text)
        return image, text


class SharingBlock(nn.Module):
    def __init__(self, owns: bool) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(HIDDEN), inner()
        self.q, self.o = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.both = nn.Linear(HIDDEN, 2 * HIDDEN) if owns else None

    def forward(self, x: Tensor, held: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        y = self.norm(x)
        if self.both is not None:
            held = tuple(heads(part) for part in self.both(y).chunk(2, -1))
        mixed = F.scaled_dot_product_attention(heads(self.q(y)), held[0], held[1], is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).flatten(2))
        return x + self.inner(x), held


class Sharing(nn.Module):
    """Every second layer attends to the keys and values of the layer before."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SharingBlock(layer % 2 == 0) for layer in range(2 * LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        held: tuple[Tensor, ...] = ()
        for block in self.blocks:
            x, held = block(x, held)
        return x


def inputs_of(kind: type[nn.Module]) -> tuple[Tensor, ...] | Tensor:
    x = torch.randn(2, LENGTH, HIDDEN)
    return x if kind is Sharing else (x, torch.randn(2, 3, HIDDEN))


def sites_of(kind: type[nn.Module], role: Role) -> list[Site]:
    return [site for site in pc.find_sites(kind(), inputs_of(kind)) if site.role is role]


def test_each_stream_that_attends_jointly_has_an_output() -> None:
    outputs = [f"blocks.{layer}.out.{stream}" for layer in range(LAYERS) for stream in range(2)]
    assert [site.path for site in sites_of(Joint, Role.ATTENTION_OUTPUT)] == outputs
    assert len(sites_of(Joint, Role.ATTENTION)) == 2 * LAYERS
    assert not any(site.cross for site in sites_of(Joint, Role.ATTENTION_CORE))


def test_keys_of_an_earlier_layer_are_no_other_stream() -> None:
    values = sites_of(Sharing, Role.VALUE)
    assert [(site.path, site.cross) for site in values] == [
        ("blocks.0.both", False),
        ("blocks.2.both", False),
    ]
    assert [site.cross for site in sites_of(Sharing, Role.ATTENTION_CORE)] == [False] * 2 * LAYERS


@pytest.mark.parametrize("kind", [Joint, Sharing])
def test_every_promise_is_kept(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    report = pc.verify(pc.compile(kind(), SENTENCE, inputs_of(kind)))
    assert report.ok, str(report)
