"""What invertible adapters alone promise: the inverse is one, with the parameters of the coupling."""

from dataclasses import replace

import pytest
import torch

import peft_compiler as pc
from peft_compiler.methods import InvertibleAdapter
from peft_compiler.methods.invertible_adapter import Coupled, Coupling, Uncoupled
from peft_compiler.testing.places import examples
from tests import zoo
from tests.test_compiling import stir

EXAMPLES = examples()


def test_the_inverse_undoes_the_coupling() -> None:
    coupling = Coupling(8, 3, "tanh", torch.Generator().manual_seed(0))
    for parameter in coupling.parameters():
        torch.nn.init.normal_(parameter)
    e = torch.randn(2, 5, 8)
    coupled = Coupled(coupling)(e)
    assert (coupled - e).abs().min() > 0
    torch.testing.assert_close(Uncoupled(coupling)(coupled), e)


def test_the_embedding_and_the_head_share_one_coupling() -> None:
    model = zoo.build("llama")
    tuned = pc.compile(model, "invertible adapters width=5 on embedding, head", zoo.inputs("llama"))
    half = zoo.HIDDEN // 2
    assert tuned.compilation.plan.trainable == 2 * (2 * half * 5 + half + 5)
    stir(tuned)
    inserted = "inserted.{}_invertible_adapter.coupling"
    assert tuned.get_submodule(f"lm_head.{inserted.format('head')}") is tuned.get_submodule(
        f"model.embed_tokens.{inserted.format('embedding')}"
    )
    report = pc.verify(tuned)
    assert report.ok, str(report)


def test_it_joins_the_embedding_alone_where_nothing_else_is_said() -> None:
    plan = pc.plan(zoo.build("bert"), "invertible adapters", zoo.inputs("bert"))
    assert [insertion.site.path for insertion in plan.insertions] == ["bert.embeddings.word_embeddings"]
    assert plan.insertions[0].method.width == zoo.HIDDEN // 4


@pytest.mark.parametrize(
    ("width", "features", "problem"),
    [
        (3, 6, "width=3 is no bottleneck: half of the place is 3 wide; take less"),
        (2, 7, "the 7 features of the place have no halves: choose another place"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(width: int, features: int, problem: str) -> None:
    site = replace(EXAMPLES["embedding"].site, width_out=features)
    assert list(InvertibleAdapter(width=width).problems(site)) == [problem]
