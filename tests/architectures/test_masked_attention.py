"""Attention whose scores and probabilities take detours on their way, under LoRA and prompts."""

import pytest
import torch
from torch import Tensor, nn

import peft_compiler as pc
from peft_compiler.role import Role
from tests.test_compiling import stir

HEADS, WIDTH, LENGTH = 2, 4, 6
HIDDEN = HEADS * WIDTH
SPEC = "lora r=2 on q,v; deep prompts length=3"


class Attends(nn.Module):
    """Attention with a residual add; queries do not see what comes later."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (project(x).unflatten(-1, (HEADS, WIDTH)) for project in (self.a, self.b, self.c))
        return x + self.d(self.mix(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (self.shares(q @ k.mT) @ v).transpose(1, 2).flatten(2)

    def shares(self, scores: Tensor) -> Tensor:
        return scores.masked_fill(self.hidden(scores), -torch.inf).softmax(-1)

    def hidden(self, scores: Tensor) -> Tensor:
        queries, keys = scores.shape[-2:]
        return torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1)


class MaskedProbabilities(Attends):
    """The first query sees no key at all: its probabilities are set to zero afterwards."""

    def shares(self, scores: Tensor) -> Tensor:
        probabilities = scores.masked_fill(self.hidden(scores), -torch.inf).softmax(-1)
        return probabilities.masked_fill(self.hidden(scores), 0.0)

    def hidden(self, scores: Tensor) -> Tensor:
        hidden = super().hidden(scores)
        hidden[0] = True
        return hidden


class NoLessThanTheLeast(Attends):
    def shares(self, scores: Tensor) -> Tensor:
        masked = scores.masked_fill(self.hidden(scores), torch.finfo(scores.dtype).min)
        return torch.max(masked, torch.tensor(torch.finfo(scores.dtype).min)).softmax(-1)


class ShapedAsTheScores(Attends):
    """A bias gets the shape of the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(LENGTH * LENGTH))

    def shares(self, scores: Tensor) -> Tensor:
        return (scores + self.bias.repeat(scores.shape[0] * HEADS).reshape_as(scores)).softmax(-1)


class InWindows(Attends):
    """Each half of the queries sees its own half of the keys; the halves lie behind the heads."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (2, -1)) for part in (q, k, v))
        return (self.shares(q @ k.mT) @ v).flatten(2, 3).transpose(1, 2).flatten(2)


class WindowsFirst(Attends):
    """Windows lie before the heads, and letters leave out what is alike."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (2, -1)).permute(0, 2, 3, 1, 4) for part in (q, k, v))
        shares = self.shares(torch.einsum("...qhd,...khd->...hqk", q, k))
        return torch.einsum("...hqk,...khd->...qhd", shares, v).flatten(1, 2).flatten(2)


class FusedInWindows(InWindows):
    """In one op."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (2, -1)) for part in (q, k, v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
        return mixed.flatten(2, 3).transpose(1, 2).flatten(2)


class FusedWindowsFirst(InWindows):
    """In one op."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (2, -1)).transpose(1, 2) for part in (q, k, v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
        return mixed.transpose(2, 3).flatten(1, 2).flatten(2)


class InPaddedWindows(Attends):
    """Windows reach over the last key, and are padded."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = q.unflatten(2, (2, -1)), self.near(k), self.near(v)
        return (self.shares(q @ k.mT) @ v).flatten(2, 3).transpose(1, 2).flatten(2)

    def near(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x, (0, 0, 1, 1)).unfold(2, LENGTH // 2 + 2, LENGTH // 2).mT


class InAnImage(Attends):
    """A bias is added where queries and keys lie in rows and columns of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(3, 1, 3))

    def shares(self, scores: Tensor) -> Tensor:
        in_image = scores.reshape(-1, HEADS, 2, 3, 2, 3) + self.bias
        return in_image.reshape(-1, HEADS, LENGTH, LENGTH).softmax(-1)


class PositionsFirst(Attends):
    """Examples stand in the second axis, and lie with the heads in one axis."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        q, k, v = (
            project(x).unflatten(-1, (HEADS, WIDTH)).flatten(1, 2).transpose(0, 1)
            for project in (self.a, self.b, self.c)
        )
        mixed = (q @ k.mT).softmax(-1) @ v
        return (x + self.d(mixed.transpose(0, 1).unflatten(1, (-1, HEADS)).flatten(2))).transpose(0, 1)


class Pools(nn.Module):
    """One learned query attends to all states: torch's module takes a part of its matrix for it."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, HIDDEN))
        self.attention = nn.MultiheadAttention(HIDDEN, HEADS, batch_first=True)
        self.up, self.down = nn.Linear(HIDDEN, 2 * HIDDEN), nn.Linear(2 * HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        pooled, _ = self.attention(self.query.repeat(len(x), 1, 1), x, x)
        return pooled + self.down(self.up(pooled).relu())


def copy_of(model: nn.Module) -> Attends:
    """The same weights, without windows."""
    plain = Attends()
    plain.load_state_dict(model.state_dict())
    return plain


KINDS = [
    Attends,
    MaskedProbabilities,
    NoLessThanTheLeast,
    ShapedAsTheScores,
    InWindows,
    WindowsFirst,
    FusedInWindows,
    FusedWindowsFirst,
    InPaddedWindows,
    InAnImage,
    PositionsFirst,
    Pools,
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_promise_is_kept(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    spec = f"{SPEC} in cross attention" if kind is Pools else f"{SPEC}; llama-adapter length=2"
    report = pc.verify(pc.compile(kind(), spec, torch.randn(3, LENGTH, HIDDEN)))
    assert report.ok, str(report)


@pytest.mark.parametrize("kind", [InWindows, WindowsFirst, FusedInWindows, FusedWindowsFirst])
@pytest.mark.parametrize("spec", ["deep prompts length=3", "llama-adapter length=2"])
def test_every_window_sees_the_prompts(kind: type[Attends], spec: str) -> None:
    torch.manual_seed(0)
    base, x = kind(), torch.randn(3, LENGTH, HIDDEN)
    # As many windows as heads: no shape tells them apart.
    tuned = pc.compile(base, spec, x)
    halves = pc.compile(copy_of(base), spec, x[:, :3])
    stir(tuned)
    (inserted,) = tuned.get_submodule("inserted").children()
    (other,) = halves.get_submodule("inserted").children()
    other.load_state_dict(inserted.state_dict())
    torch.testing.assert_close(tuned(x), torch.cat([halves(x[:, :3]), halves(x[:, 3:])], 1))


def test_prompts_are_seen_where_no_key_is() -> None:
    torch.manual_seed(0)
    base, x = MaskedProbabilities(), torch.randn(3, LENGTH, HIDDEN)
    tuned = pc.compile(base, "deep prompts length=3", x)
    stir(tuned)
    prompts = tuned.get_submodule("inserted.core_deep_prompts")

    class Expected(MaskedProbabilities):
        def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            k = torch.cat([prompts.keys.expand(len(k), -1, -1, -1), k], 2)
            return super().mix(q, k, torch.cat([prompts.values.expand(len(v), -1, -1, -1), v], 2))

        def hidden(self, scores: Tensor) -> Tensor:
            return nn.functional.pad(super().hidden(scores[..., 3:]), (3, 0), value=False)

    expected = Expected()
    expected.load_state_dict(base.state_dict())
    torch.testing.assert_close(tuned(x), expected(x))
    assert tuned(x).isfinite().all()


def test_a_part_of_a_matrix_is_adapted_in_its_own_rows() -> None:
    torch.manual_seed(0)
    model, x = Pools(), torch.randn(3, LENGTH, HIDDEN)
    rows = {
        site.role: (site.rows, site.place.rows_of_output)
        for site in pc.find_sites(model, x)
        if site.role in (Role.QUERY, Role.KEY, Role.VALUE)
    }
    assert {role: str(of_matrix) for role, (of_matrix, _) in rows.items()} == {
        Role.QUERY: "[0:8] of 24",
        Role.KEY: "[8:16] of 24",
        Role.VALUE: "[16:24] of 24",
    }
    assert {role: str(of_output) for role, (_, of_output) in rows.items()} == {
        Role.QUERY: "None",
        Role.KEY: "[0:8] of 16",
        Role.VALUE: "[8:16] of 16",
    }
    tuned = pc.compile(model, "lora r=2 on q,v", x)
    stir(tuned)
    merged = pc.merge(tuned)
    torch.testing.assert_close(merged(x), tuned(x))
    moved = (merged.attention.in_proj_weight - model.attention.in_proj_weight).abs().sum(1) > 0
    assert moved.tolist() == [True] * 8 + [False] * 8 + [True] * 8
