"""Attention by einsum, with weights that have an axis for heads, is what attention by products is."""

import pytest
import torch
from torch import Tensor, einsum, nn

import peft_compiler as pc
from peft_compiler.lowering.observing import observe
from peft_compiler.site import Core, Projection, Role, Site

HEADS, WIDTH, HIDDEN, LAYERS, TOKENS, LENGTH = 4, 2, 6, 2, 11, 5


class Attends(nn.Module):
    """To the scores comes a second product of the queries, which by letters is nearer to the softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.a, self.b, self.c, self.d = (
            nn.Parameter(torch.randn(HIDDEN, HEADS, WIDTH) / 2) for _ in range(4)
        )
        self.positions = nn.Parameter(torch.randn(HEADS, WIDTH, LENGTH) / 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x + self.attend(self.norm(x), mask)

    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        raise AssertionError("a class below says how")

    def shares(self, content: Tensor, to_positions: Tensor, mask: Tensor) -> Tensor:
        scores = (content + to_positions) / 2
        return scores.masked_fill(mask[:, None, None] == 0, -1e9).softmax(-1)


class ByProducts(Attends):
    """Its weights are matrices."""

    def __init__(self) -> None:
        super().__init__()
        for name in "abcd":
            setattr(self, name, nn.Parameter(getattr(self, name).detach().flatten(1)))

    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            (x @ weight).unflatten(-1, (HEADS, WIDTH)).transpose(1, 2) for weight in (self.a, self.b, self.c)
        )
        # The product of queries and keys is the nearest to the softmax only here.
        shares = self.shares(0.7 * q @ k.mT, q @ (self.positions * 2) + 0.1, mask)
        return (shares @ v).transpose(1, 2).flatten(2) @ self.d.T


class BatchFirst(Attends):
    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (einsum("bim,mhd->bihd", x, weight) for weight in (self.a, self.b, self.c))
        to_positions = einsum("bihd,hdj->bhij", q, self.positions * 2)
        shares = self.shares(0.7 * einsum("bihd,bjhd->bhij", q, k) + 0.1, to_positions, mask)
        return einsum("bihd,mhd->bim", einsum("bhij,bjhd->bihd", shares, v), self.d)


class SequenceFirst(Attends):
    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (einsum("ibm,mhd->ibhd", x.transpose(0, 1), weight) for weight in (self.a, self.b, self.c))
        to_positions = einsum("ibhd,hdj->bhij", q, self.positions * 2)
        shares = self.shares(0.7 * einsum("ibhd,jbhd->bhij", q, k) + 0.1, to_positions, mask)
        return einsum("ibhd,mhd->ibm", einsum("bhij,jbhd->ibhd", shares, v), self.d).transpose(0, 1)


class OtherWayRound(Attends):
    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (einsum("mhd,bim->bihd", weight, x) for weight in (self.a, self.b, self.c))
        to_positions = einsum("hdj,bihd->bhij", self.positions * 2, q)
        shares = self.shares(0.7 * einsum("bjhd,bihd->bhij", k, q) + 0.1, to_positions, mask)
        return einsum("mhd,bihd->bim", self.d, einsum("bjhd,bhij->bihd", v, shares))


BY_LETTERS = (BatchFirst, SequenceFirst, OtherWayRound)


class Model(nn.Module):
    def __init__(self, block: type[Attends]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(TOKENS, HIDDEN)
        self.blocks = nn.ModuleList(block() for _ in range(LAYERS))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.tokens(input_ids)
        for block in self.blocks:
            x = block(x, attention_mask)
        return x


def example(length: int = LENGTH) -> dict[str, Tensor]:
    mask = torch.ones(HEADS, length, dtype=torch.long)  # as many rows as heads, which no layout may confuse
    mask[0, :2] = 0
    return {
        "input_ids": torch.arange(HEADS * length).reshape(HEADS, length) % TOKENS,
        "attention_mask": mask,
    }


def sites_of(block: type[Attends]) -> dict[Role, Site]:
    return {site.role: site for site in pc.find_sites(Model(block), example()) if site.layer == 0}


@pytest.mark.parametrize("block", BY_LETTERS)
def test_roles_and_matrices(block: type[Attends]) -> None:
    sites = sites_of(block)
    found = {
        role.value.removeprefix("attention."): (site.place.weight, site.place.form, site.place.axes)
        for role, site in sites.items()
        if isinstance(site.place, Projection) and site.path
    }
    assert found == {
        "query": ("a", "transposed", (1, 2)),
        "key": ("b", "transposed", (1, 2)),
        "value": ("c", "transposed", (1, 2)),
        "output": ("d", "linear", (2, 1)),
    }
    query, output, core = (sites[role] for role in (Role.QUERY, Role.ATTENTION_OUTPUT, Role.ATTENTION_CORE))
    assert (query.width_in, query.width_out) == (HIDDEN, HEADS * WIDTH)
    assert (output.width_in, output.width_out) == (HEADS * WIDTH, HIDDEN)
    assert isinstance(core.place, Core)
    assert (core.place.heads, core.place.key_width, core.place.value_width) == (HEADS, WIDTH, WIDTH)


SPECS = (
    "LoRA r=2 on q,k,v,o",
    "DoRA r=2 on q,o",
    "SSF on q,o; IA3 on k,v",
    "OFT block_size=2 on q,o",
    "deep prompts length=3 on every layer",
    "deep prompts length=3; prefix length=2; LoRA r=2 on q,v",
)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("block", BY_LETTERS)
def test_it_keeps_every_promise(block: type[Attends], spec: str) -> None:
    report = pc.verify(pc.compile(Model(block).eval(), spec, example_inputs=example()))
    assert report.ok, str(report)


@pytest.mark.parametrize("spec", [spec for spec in SPECS if "prompts" in spec or "LoRA" in spec])
@pytest.mark.parametrize("block", BY_LETTERS)
def test_it_computes_what_products_do(block: type[Attends], spec: str) -> None:
    """Places have other names in the two, and yet insertions are the same in the same order."""
    ours, theirs = (
        pc.compile(Model(each).eval(), spec, example_inputs=example()) for each in (block, ByProducts)
    )
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for one, other in zip(trained(ours), trained(theirs), strict=True):
            one.copy_(torch.randn(one.shape, generator=draws) / 2)
            other.copy_(one)
        torch.testing.assert_close(ours(**example()), theirs(**example()), atol=1e-5, rtol=1e-5)


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for _, parameter in sorted(model.named_parameters()) if parameter.requires_grad]


@pytest.mark.parametrize("block", BY_LETTERS)
def test_the_keys_and_values_of_words_are_those_of_products(block: type[Attends]) -> None:
    words = tuple(range(LENGTH))
    found = [
        observe(Model(each).eval(), [sites_of(each)[Role.ATTENTION_CORE]], words, example())
        for each in (block, ByProducts)
    ]
    for ours, theirs in zip(*(keys_and_values for ((*keys_and_values,),) in found), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_weight_whose_axes_are_out_of_order_has_no_role() -> None:
    class OutOfOrder(BatchFirst):
        """Its values lie as (width, heads) in the weight and as (heads, width) in the output."""

        def attend(self, x: Tensor, mask: Tensor) -> Tensor:
            q, k = (einsum("bim,mhd->bihd", x, weight) for weight in (self.a, self.b))
            v = einsum("bim,mdh->bihd", x, self.c.transpose(1, 2).reshape(HIDDEN, WIDTH, HEADS))
            shares = einsum("bihd,bjhd->bhij", q, k).softmax(-1)
            return einsum("bihd,mhd->bim", einsum("bhij,bjhd->bihd", shares, v), self.d)

    assert Role.VALUE not in sites_of(OutOfOrder)
    assert Role.QUERY in sites_of(OutOfOrder)
