"""Blocks of diffusion models in plain PyTorch: under a condition, and in convolutions."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (the name that the models imitated here use)

import peft_compiler as pc
from peft_compiler.site import Role

HEADS, WIDTH = 4, 8
HIDDEN = HEADS * WIDTH
SENTENCE = "LoRA r=8 on q,v; adapters after FFN; deep prompts on every layer"


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (part.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class ConditionedBlock(nn.Module):
    """A block under adaLN-Zero (DiT, arXiv:2212.09748): shifts, scales and gates are made of a condition."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(HIDDEN, elementwise_affine=False) for _ in range(2))
        self.fused, self.out = nn.Linear(HIDDEN, 3 * HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.first, self.second = nn.Linear(HIDDEN, 64), nn.Linear(64, HIDDEN)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(HIDDEN, 6 * HIDDEN))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        parts = self.modulation(condition).unsqueeze(1).chunk(6, -1)
        y = self.norms[0](x) * (1 + parts[1]) + parts[0]
        x = x + parts[2] * self.out(attend(*self.fused(y).chunk(3, -1)))
        y = self.norms[1](x) * (1 + parts[4]) + parts[3]
        return x + parts[5] * self.second(F.gelu(self.first(y)))


class Conditioned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, HIDDEN, 4, 4)
        self.time = nn.Sequential(nn.Linear(4, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN))
        self.blocks = nn.ModuleList(ConditionedBlock() for _ in range(2))
        self.last = nn.Linear(HIDDEN, 48)

    def forward(self, image: Tensor, time: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        condition = self.time((time[:, None] * torch.arange(4)).cos())
        for block in self.blocks:
            x = block(x, condition)
        return self.last(x)


class InConvolutions(nn.Module):
    """Attention to the image and to a text, between convolutions that a skip connection goes around."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.deep = (nn.Conv2d(width, HIDDEN, 3, padding=1) for width in (4, HIDDEN))
        self.before, self.after = (nn.Conv2d(HIDDEN, HIDDEN, 1) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(HIDDEN) for _ in range(3))
        self.own = nn.ModuleDict({each: nn.Linear(HIDDEN, HIDDEN) for each in "abcd"})
        widths = {"a": HIDDEN, "b": 24, "c": 24, "d": HIDDEN}
        self.text = nn.ModuleDict({each: nn.Linear(width, HIDDEN) for each, width in widths.items()})
        self.inner, self.outer = nn.Linear(HIDDEN, 128), nn.Linear(64, HIDDEN)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        image = self.enter(image)
        image = image + self.deep(F.silu(image))
        x = self.before(image).flatten(2).transpose(1, 2)
        y = self.norms[0](x)
        x = x + self.own["d"](attend(*(self.own[each](y) for each in "abc")))
        y = self.norms[1](x)
        x = x + self.text["d"](attend(self.text["a"](y), self.text["b"](text), self.text["c"](text)))
        up, gate = self.inner(self.norms[2](x)).chunk(2, -1)
        x = x + self.outer(up * F.gelu(gate))
        return image + self.after(x.transpose(1, 2).unflatten(2, image.shape[2:]))


CONDITIONED = Conditioned, lambda: (torch.randn(2, 3, 16, 16), torch.rand(2))
IN_CONVOLUTIONS = InConvolutions, lambda: (torch.randn(2, 4, 8, 8), torch.randn(2, 5, 24))


def paths(kind: type[nn.Module], inputs: tuple[Tensor, ...], *roles: Role) -> list[str]:
    return [site.path for site in pc.find_sites(kind(), inputs) if site.role in roles]


def test_what_makes_a_condition_is_no_feed_forward_layer() -> None:
    kind, inputs = CONDITIONED
    inner = [f"blocks.{layer}.{name}" for layer in range(2) for name in ("first", "second")]
    assert paths(kind, inputs(), Role.UP, Role.DOWN) == inner
    assert paths(kind, inputs(), Role.FEED_FORWARD) == ["blocks.0", "blocks.1"]


def test_what_a_skip_connection_goes_around_is_no_head() -> None:
    kind, inputs = IN_CONVOLUTIONS
    assert paths(kind, inputs(), Role.HEAD) == ["after"]


@pytest.mark.parametrize(("kind", "inputs"), [CONDITIONED, IN_CONVOLUTIONS], ids=["DiT", "UNet"])
def test_every_promise_is_kept(kind: type[nn.Module], inputs: object) -> None:
    torch.manual_seed(0)
    report = pc.verify(pc.compile(kind(), SENTENCE, inputs()))  # pyright: ignore
    assert report.ok, str(report)
