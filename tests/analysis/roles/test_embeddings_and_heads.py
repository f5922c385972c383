"""Which tables hold tokens, and which tell something about them."""

import torch
from torch import Tensor, nn

import peft_compiler as pc
from peft_compiler.role import Role
from tests import zoo


class Embeddings(nn.Module):
    """Tokens, their kinds and where they stand on a page, added up; then two linears."""

    def __init__(self, kinds: int) -> None:
        super().__init__()
        self.tokens, self.kinds = nn.Embedding(50, 8), nn.Embedding(kinds, 8)
        self.left, self.top = nn.Embedding(40, 4), nn.Embedding(40, 4)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, ids: Tensor, kinds: Tensor, page: Tensor) -> Tensor:
        place = torch.cat([self.left(page[..., 0]), self.top(page[..., 1])], -1)
        x = self.kinds(kinds) + self.tokens(ids).to(torch.float32) + place
        return x + self.down(self.up(self.norm(x)).relu())


def found(kinds: int) -> set[str]:
    ids = torch.randint(0, 3, (2, 5))
    inputs = {"ids": ids, "kinds": ids, "page": ids[..., None].expand(-1, -1, 2)}
    return {site.path for site in pc.find_sites(Embeddings(kinds), inputs) if site.role is Role.EMBEDDING}


def test_of_tables_that_are_added_up_the_largest_holds_the_tokens() -> None:
    assert found(kinds=4) == {"tokens"}


def test_tables_of_one_size_hold_tokens_of_several_books() -> None:
    assert found(kinds=50) == {"tokens", "kinds"}


def test_kinds_of_tokens_in_the_example_change_no_plan() -> None:
    model, inputs = zoo.build("bert"), zoo.inputs("bert")
    kinds = {"token_type_ids": torch.zeros_like(inputs["input_ids"])}
    spec = "trainable tokens tokens=[3, 4]; invertible adapter; prompt length=2"
    assert pc.plan(model, spec, inputs | kinds).trainable == pc.plan(model, spec, inputs).trainable
