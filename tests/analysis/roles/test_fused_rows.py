"""The rows that reach an operand are those that its gradient reaches, and never a guess."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from peft_compiler.analysis.find_sites import find_sites
from peft_compiler.site import Role

BATCH, LENGTH, HEADS, WIDTH = 2, 3, 2, 4
HIDDEN = HEADS * WIDTH

Split = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def thirds(x: Tensor) -> tuple[Tensor, ...]:
    return tuple(part.view(BATCH, LENGTH, HEADS, WIDTH).transpose(1, 2) for part in x.split(HIDDEN, -1))


def per_head(x: Tensor) -> tuple[Tensor, ...]:
    return x.view(BATCH, LENGTH, HEADS, 3, WIDTH).permute(3, 0, 2, 1, 4).unbind(0)


def interleaved(x: Tensor) -> tuple[Tensor, ...]:
    return tuple(x[..., start::3].unflatten(-1, (HEADS, WIDTH)).transpose(1, 2) for start in range(3))


def rotated(x: Tensor) -> tuple[Tensor, ...]:
    q, k, v = thirds(x)
    left, right = q.chunk(2, -1)
    return torch.cat((left * 0.5 - right * 0.3, right * 0.5 + left * 0.3), -1), k, v


def rotated_as_complex_numbers(x: Tensor) -> tuple[Tensor, ...]:
    q, k, v = thirds(x)
    turned = torch.view_as_complex(q.contiguous().unflatten(-1, (-1, 2))) * torch.tensor(1j)
    return torch.view_as_real(turned).flatten(-2), k, v


def normalised(x: Tensor) -> tuple[Tensor, ...]:
    q, k, v = per_head(x)
    return q * torch.rsqrt(q.pow(2).mean(-1, keepdim=True) + 1e-6), F.layer_norm(k, (WIDTH,)), v


def largest_of_two_positions(x: Tensor) -> tuple[Tensor, ...]:
    q, k, v = thirds(x)
    return torch.stack((q, q.roll(1, 2))).amax(0), k, v


def written_into_place(x: Tensor) -> tuple[Tensor, ...]:
    q, k, v = thirds(x)
    filled = torch.zeros(BATCH, HEADS, LENGTH, WIDTH, device=x.device)
    filled[..., :1] = k[..., :1]
    filled[..., 1:].copy_(k[..., 1:])
    return q, filled, v


def written_through_views(x: Tensor) -> tuple[Tensor, ...]:
    q, k, v = thirds(x)
    filled = torch.empty(BATCH, HEADS, LENGTH, WIDTH, device=x.device)
    filled[..., :1].copy_(k[..., :1])
    filled[..., 1:].copy_(k[..., 1:])
    return q, filled, v


def summed(x: Tensor) -> tuple[Tensor, ...]:
    q, k, v = thirds(x)
    return q, k, v + q * 0.5


class Attends(nn.Module):
    """Attention on one fused projection that `split` takes apart."""

    def __init__(self, split: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.fused = nn.Linear(HIDDEN, 3 * HIDDEN)
        self.out = nn.Linear(HIDDEN, HIDDEN)
        self.split = split

    def forward(self, x: Tensor) -> Tensor:
        mixed = F.scaled_dot_product_attention(*self.split(self.fused(x)))
        return x + self.out(mixed.transpose(1, 2).reshape(x.shape))


def rows_with_a_gradient(split: Callable[[Tensor], tuple[Tensor, ...]], place: int) -> tuple[int, ...]:
    fused = torch.randn(
        BATCH, LENGTH, 3 * HIDDEN, generator=torch.Generator().manual_seed(0), requires_grad=True
    )
    operand = split(fused)[place]
    # Weighted, because the sum of something normalised is constant.
    weights = torch.randn(operand.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((operand * weights).sum(), fused)
    return tuple(gradient.abs().sum((0, 1)).nonzero().flatten().tolist())


@pytest.mark.parametrize(
    "split",
    [
        thirds,
        per_head,
        interleaved,
        rotated,
        rotated_as_complex_numbers,
        normalised,
        largest_of_two_positions,
        written_into_place,
        written_through_views,
        summed,
    ],
    ids=lambda split: split.__name__,
)
def test_rows_are_those_that_a_gradient_reaches(split: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
    sites = {site.role: site for site in find_sites(Attends(split), torch.ones(BATCH, LENGTH, HIDDEN))}
    for place, role in enumerate((Role.QUERY, Role.KEY, Role.VALUE)):
        assert sites[role].rows is not None
        assert sites[role].rows.indices == rows_with_a_gradient(split, place)


def test_rows_that_cannot_be_followed_give_no_site_but_a_reason() -> None:
    def pooled(x: Tensor) -> tuple[Tensor, ...]:
        q, k, v = thirds(x)
        return F.avg_pool2d(q.repeat(1, 1, 1, 2), (1, 2)), k, v

    def partly_pooled(x: Tensor) -> tuple[Tensor, ...]:
        q, k, v = thirds(x)
        return q + pooled(x)[0], k, v

    def sum_written(x: Tensor) -> tuple[Tensor, ...]:
        q, k, v = thirds(x)
        filled = torch.empty(BATCH, HEADS, LENGTH, WIDTH, device=x.device)
        filled[..., :].copy_(q + k * 0.5)
        return filled, k, v

    def largest_of_two_features(x: Tensor) -> tuple[Tensor, ...]:
        q, k, v = thirds(x)
        return F.max_pool2d(q.repeat(1, 1, 1, 2), (1, 2)), k, v

    for split in (partly_pooled, sum_written, largest_of_two_features):
        sites = find_sites(Attends(split), torch.ones(BATCH, LENGTH, HIDDEN))
        assert Role.QUERY not in {site.role for site in sites}
    sites = find_sites(Attends(pooled), torch.ones(BATCH, LENGTH, HIDDEN))
    assert Role.QUERY not in {site.role for site in sites}
    (core,) = [site for site in sites if site.role is Role.ATTENTION_CORE]
    assert core.evidence[1:] == ("which rows of linear fused are the query is unknown",)
    assert Role.KEY in {site.role for site in sites}


class Gated(nn.Module):
    """A feed-forward layer whose gate and up share one projection."""

    def __init__(self, gate_first: bool) -> None:
        super().__init__()
        self.fused = nn.Linear(HIDDEN, 2 * HIDDEN)
        self.down = nn.Linear(HIDDEN, HIDDEN)
        self.gate_first = gate_first

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.fused(x).chunk(2, -1)
        gate, up = (first, second) if self.gate_first else (second, first)
        return x + self.down(F.silu(gate) * up)


@pytest.mark.parametrize("gate_first", [True, False])
def test_the_gate_is_the_half_behind_the_nonlinearity(gate_first: bool) -> None:
    sites = {site.role: str(site.rows) for site in find_sites(Gated(gate_first), torch.ones(2, HIDDEN))}
    halves = ("[0:8] of 16", "[8:16] of 16")
    assert (sites[Role.GATE], sites[Role.UP]) == (halves if gate_first else halves[::-1])


def test_a_slice_of_a_parameter_of_which_the_rest_did_not_run_gives_no_site() -> None:
    class OneOfTwo(Gated):
        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(F.silu(F.linear(x, self.fused.weight[:HIDDEN])))

    class BothOfTwo(Gated):
        def forward(self, x: Tensor) -> Tensor:
            first, second = self.fused.weight.chunk(2)
            return x + self.down(F.silu(F.linear(x, first)) * F.linear(x, second))

    assert Role.UP not in {site.role for site in find_sites(OneOfTwo(True), torch.ones(2, HIDDEN))}
    rows = {site.role: str(site.rows) for site in find_sites(BothOfTwo(True), torch.ones(2, HIDDEN))}
    assert (rows[Role.GATE], rows[Role.UP]) == ("[0:8] of 16", "[8:16] of 16")
