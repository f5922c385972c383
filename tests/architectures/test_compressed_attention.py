"""Queries and keys that a convolution by heads mixes over positions, beside a mean of both, as in Zaya."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (the name that the models imitated here use)

import peft_compiler as pc
from peft_compiler.site import Role

HEADS, KEY_HEADS, WIDTH, KERNEL = 4, 2, 4, 2
QUERIES, KEYS, HIDDEN = HEADS * WIDTH, KEY_HEADS * WIDTH, 12


class Compressed(nn.Module):
    """Attention whose convolution has as many groups as all heads together, or half as many."""

    def __init__(self, groups: int = HEADS + KEY_HEADS) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(HIDDEN, QUERIES), nn.Linear(HIDDEN, KEYS)
        self.c, self.d = nn.Linear(HIDDEN, KEYS), nn.Linear(QUERIES, HIDDEN)
        both = QUERIES + KEYS
        self.taps = nn.Conv1d(both, both, KERNEL, groups=both)
        self.mixes = nn.Conv1d(both, both, KERNEL, groups=groups)
        self.inner = nn.Sequential(nn.Linear(HIDDEN, 6), nn.GELU(), nn.Linear(6, HIDDEN))

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.a(x), self.b(x)
        mean = (self.heads(q) + self.heads(k).repeat_interleave(HEADS // KEY_HEADS, dim=2)) / 2
        padded = F.pad(torch.cat([q, k], dim=-1).mT, (2 * (KERNEL - 1), 0))
        convolved = self.mixes(self.taps(padded)).mT
        q = self.heads(convolved[..., :QUERIES]) + mean
        k = self.heads(convolved[..., QUERIES:]) + mean.unflatten(2, (KEY_HEADS, -1)).mean(3)
        q, k, v = (each.transpose(1, 2) for each in (q, k, self.heads(self.c(x))))
        context = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.d(context.transpose(1, 2).flatten(2))
        return x + self.inner(x)


EXAMPLE = (torch.randn(2, 5, HIDDEN),)


def test_queries_and_keys_are_told_apart_by_the_groups_of_the_convolution() -> None:
    sites = pc.find_sites(Compressed(), EXAMPLE)
    operands = {
        (site.role, site.path): (site.rows, site.evidence)
        for site in sites
        if site.role in (Role.QUERY, Role.KEY, Role.VALUE)
    }
    end = "→ conv1d → … → getitem → unflatten → add → transpose → scaled_dot_product_attention operand"
    assert operands == {
        (Role.QUERY, "a"): (None, (f"linear a → cat → mT → pad {end} query",)),
        (Role.KEY, "b"): (None, (f"linear b → cat → mT → pad {end} key",)),
        (Role.VALUE, "c"): (
            None,
            ("linear c → unflatten → transpose → scaled_dot_product_attention operand value",),
        ),
    }
    (core,) = [site for site in sites if site.role is Role.ATTENTION_CORE]
    assert core.evidence == ("scaled_dot_product_attention in the model",)


def test_rows_of_one_projection_are_told_apart_through_the_convolution() -> None:
    class Fused(Compressed):
        def __init__(self) -> None:
            super().__init__()
            self.both = nn.Linear(HIDDEN, QUERIES + KEYS)

        def forward(self, x: Tensor) -> Tensor:
            convolved = self.mixes(self.taps(F.pad(self.both(x).mT, (2 * (KERNEL - 1), 0)))).mT
            q, k = (self.heads(each) for each in convolved.split([QUERIES, KEYS], dim=-1))
            q, k, v = (each.transpose(1, 2) for each in (q, k, self.heads(self.c(x))))
            context = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
            return x + self.d(context.transpose(1, 2).flatten(2))

    sites = pc.find_sites(Fused(), EXAMPLE)
    rows = {site.role: str(site.rows) for site in sites if site.path == "both"}
    assert rows == {Role.QUERY: "[0:16] of 24", Role.KEY: "[16:24] of 24"}


def test_a_group_that_spans_queries_and_keys_tells_nothing_of_what_is_behind_it() -> None:
    sites = pc.find_sites(Compressed(groups=1), EXAMPLE)
    assert {site.path for site in sites if site.role in (Role.QUERY, Role.KEY)} == {"mixes"}
    sites = pc.find_sites(Compressed(groups=2), EXAMPLE)
    assert {site.path for site in sites if site.role in (Role.QUERY, Role.KEY)} == {"mixes"}


@pytest.mark.parametrize("spec", ["LoRA r=2 on q,v; adapters width=2 after FFN; deep prompts length=3"])
def test_it_keeps_every_promise(spec: str) -> None:
    torch.manual_seed(0)
    report = pc.verify(pc.compile(Compressed().eval(), spec, example_inputs=EXAMPLE))
    assert report.ok, str(report)
