"""Attention whose products and softmax are modules of their own is what attention in one forward is."""

import pytest
import torch
from torch import Tensor, nn

import peft_compiler as pc
from peft_compiler.site import Core, Role, Site

HEADS, WIDTH, LENGTH = 2, 4, 5
HIDDEN = HEADS * WIDTH


class Product(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left @ right


class Shares(nn.Module):
    """Gives more than a tensor, and holds a product of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.product = Product()

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, None]:
        scores = self.product(q, k) * WIDTH**-0.5
        return scores.softmax(-1), None


class InOne(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))
        self.shares, self.context, self.drop = Shares(), Product(), nn.Dropout(0.1)

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mix(self.heads(self.a(x)), self.heads(self.b(x)), self.heads(self.c(x)))
        return x + self.d(mixed.transpose(1, 2).flatten(2))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.drop((q @ k.mT * WIDTH**-0.5).softmax(-1)) @ v


class Nested(InOne):
    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.context(self.drop(self.shares(q, k.mT)[0]), v)


class Again(Nested):
    """One module multiplies for the scores, and once more for the context."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.context(self.drop(self.context(q, k.mT).softmax(-1)), v)


class Stack(nn.Module):
    def __init__(self, block: type[InOne]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(block() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def example(length: int = LENGTH) -> Tensor:
    return torch.randn(3, length, HIDDEN, generator=torch.Generator().manual_seed(1))


def core_of(kind: type[InOne]) -> Site:
    return next(site for site in pc.find_sites(kind(), example()) if site.role is Role.ATTENTION_CORE)


def test_the_place_is_the_module_around_all_ops() -> None:
    site = core_of(Nested)
    assert isinstance(site.place, Core)
    ops = (site.place.scores, site.place.anchor, site.place.context)
    assert site.path == ""
    assert [op and op.within for op in ops] == ["shares.product", "shares", "context"]
    assert site.place.opened == {"shares", "shares.product", "context"}
    assert site.place.obstacle is None


@pytest.mark.parametrize("spec", ["deep prompts length=3", "deep prompts length=3; llama-adapter length=2"])
def test_prompts_do_the_same_in_both(spec: str) -> None:
    tuned = [pc.compile(Stack(kind).eval(), spec, example_inputs=example()) for kind in (InOne, Nested)]
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for one, other in zip(*(model.parameters() for model in tuned), strict=True):
            if one.requires_grad:
                one.copy_(torch.randn(one.shape, generator=draws))
                other.copy_(one)
        for length in (LENGTH, 8):
            plain, nested = (model(example(length)) for model in tuned)
            torch.testing.assert_close(nested, plain)


def test_it_keeps_every_promise() -> None:
    spec = "LoRA r=2 on q,v; deep prompts length=3; adapters width=2 after attention"
    report = pc.verify(pc.compile(Stack(Nested).eval(), spec, example_inputs=example()))
    assert report.ok, str(report)


def test_a_module_that_multiplies_for_two_is_refused() -> None:
    place = core_of(Again).place
    assert isinstance(place, Core)
    assert place.obstacle == "its ops stand in context, which is called again for others"


def test_hooks_on_a_module_that_the_graph_goes_into_are_refused() -> None:
    model = Stack(Nested).eval()
    model.blocks[0].shares.register_forward_hook(lambda *_: None)
    with pytest.raises(pc.LoweringError) as error:
        pc.compile(model, "deep prompts length=3", example_inputs=example())
    assert str(error.value) == (
        "the graph of Nested goes on into its shares, which has hooks or insertions of its own: "
        "remove the hooks, or choose one of the two places"
    )
