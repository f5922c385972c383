"""What trainable tokens alone promise: the chosen rows learn, the others stay bit for bit."""

import peft
import pytest
import torch
from pydantic import ValidationError

import peft_compiler as pc
from peft_compiler.methods import TrainableTokens
from peft_compiler.testing.places import examples
from tests import zoo
from tests.methods.peft_oracle import compare

SITE = examples()["embedding"].site


def test_only_the_chosen_tokens_change() -> None:
    base, tuned = zoo.build("llama"), pc.compile(zoo.build("llama"), "trainable tokens tokens=[5, 9]")
    embed, plain = (model.get_submodule("model.embed_tokens") for model in (tuned, base))
    delta = tuned.get_parameter("model.embed_tokens.inserted.embedding_trainable_tokens.delta")
    with torch.no_grad():
        delta.copy_(torch.randn(2, zoo.HIDDEN))
        ids = torch.arange(zoo.VOCABULARY)
        difference = embed(ids) - plain(ids)
    assert difference.any(-1).nonzero().flatten().tolist() == [5, 9]
    torch.testing.assert_close(difference[[5, 9]], delta.detach())
    embed(torch.tensor([[9, 3, 9]])).sum().backward()
    assert delta.grad is not None
    assert torch.equal(delta.grad, torch.tensor([[0.0], [2.0]]).expand(2, zoo.HIDDEN))


def test_an_input_without_the_tokens_breaks_no_promise() -> None:
    inputs = zoo.inputs("llama")
    absent = next(token for token in range(zoo.VOCABULARY) if token not in inputs["input_ids"])
    for spec, said in (
        (
            f"trainable tokens tokens=[{absent}]",
            "promised by none of the insertions; 1 trainable_tokens left out",
        ),
        (
            f"trainable tokens tokens=[{absent}]; ia3 on down",
            "2 tensors reached; 1 trainable_tokens left out",
        ),
    ):
        report = pc.verify(pc.compile(zoo.build("llama"), spec, inputs))
        assert report.ok
        details = {finding.promise: finding.detail for finding in report.findings}
        assert details["gradients reach every insertion"] == said


def test_merging_changes_the_chosen_rows_alone() -> None:
    tuned = pc.compile(zoo.build("bert"), "trainable tokens tokens=[5, 9]", zoo.inputs("bert"))
    path = "bert.embeddings.word_embeddings"
    delta = tuned.get_parameter(f"{path}.inserted.embedding_trainable_tokens.delta")
    torch.nn.init.normal_(delta)
    before, after = tuned.get_parameter(f"{path}.weight"), pc.merge(tuned).get_parameter(f"{path}.weight")
    assert (before != after).any(-1).nonzero().flatten().tolist() == [5, 9]


def test_logits_and_gradients_are_peft_s() -> None:
    """peft keeps the embeddings themselves, not what is added to them."""
    tokens = sorted({int(token) for token in zoo.inputs("llama")["input_ids"][1]})[:3]
    table = zoo.build("llama").get_parameter("model.embed_tokens.weight")
    compare(
        "llama",
        f"trainable tokens tokens={tokens}",
        peft.TrainableTokensConfig(token_indices=tokens, target_modules=["embed_tokens"]),
        {"delta": "trainable_tokens_delta.default"},
        lambda _, delta: table[tokens] + delta,
        lambda _, gradient: gradient,
    )


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ((-1,), "greater than or equal to 0"),
        ((3, 5, 3), "found token 3 twice; name each once"),
    ],
)
def test_settings_out_of_range_are_refused(tokens: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainableTokens(tokens=tokens)


def test_tokens_that_are_not_there_are_refused() -> None:
    assert list(TrainableTokens().problems(SITE)) == [
        "it has no tokens to train; name them, as in tokens=[5, 9]"
    ]
    assert list(TrainableTokens(tokens=(5, 8)).problems(SITE)) == [
        "token 8 is not in the table, which has 8 rows: resize the embeddings first"
    ]
