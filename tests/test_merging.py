"""`merge` gives a plain model that computes the same, or says why not, for every insertion."""

import pytest
import torch
from torch import nn

import peft_compiler as pc
from peft_compiler.errors import MergeError, PeftCompilerError
from peft_compiler.methods.lora import LinearLoRA, fold
from peft_compiler.plan import is_inserted
from peft_compiler.verifying.outputs import distance
from tests import zoo


def trained(name: str, spec: str) -> nn.Module:
    """A compiled model whose inserted parameters are all moved, as if by training."""
    tuned = pc.compile(zoo.build(name), spec, zoo.inputs(name)).eval()
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=draws), alpha=0.1)
    return tuned


def logits(model: nn.Module, name: str) -> torch.Tensor:
    with torch.no_grad():
        return model(**zoo.inputs(name))[0]


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("gpt2", "LoRA r=2 on q,v"),
        ("gpt2", "LoRA r=2 on all linear"),
        ("bert", "LoRA r=2 alpha=3 on q,v; LoRA r=2 on k"),
    ],
)
def test_merged_equals_unmerged(name: str, spec: str) -> None:
    tuned = trained(name, spec)
    before = logits(tuned, name)
    merged = pc.merge(tuned)
    assert distance([logits(merged, name)], [before]) < 1e-5
    assert distance([logits(zoo.build(name).eval(), name)], [before]) > 1e-3, "or nothing was merged"
    assert torch.equal(logits(tuned, name), before), "the compiled model stays as it was"


def test_the_result_is_plain_and_shares_what_did_not_change() -> None:
    model = zoo.build("gpt2")
    tuned = pc.compile(model, "LoRA r=2 on q,v", zoo.inputs("gpt2"))
    merged = pc.merge(tuned)
    assert type(merged) is type(model)
    assert {type(module) for module in merged.modules()} == {type(module) for module in model.modules()}
    assert list(merged.state_dict()) == list(model.state_dict())
    assert not any(is_inserted(name) for name, _ in merged.named_modules())
    mine, theirs = dict(merged.named_parameters()), dict(model.named_parameters())
    apart = {name for name in mine if mine[name].data_ptr() != theirs[name].data_ptr()}
    assert apart == {f"transformer.h.{layer}.attn.c_attn.weight" for layer in range(zoo.LAYERS)}


def test_rows_of_no_insertion_are_bit_for_bit_the_base() -> None:
    tuned = trained("gpt2", "LoRA r=2 on q,v")
    width = zoo.HIDDEN
    for layer in range(zoo.LAYERS):
        path = f"transformer.h.{layer}.attn.c_attn.weight"
        before, after = tuned.get_parameter(path), pc.merge(tuned).get_parameter(path)
        assert torch.equal(before[:, width : 2 * width], after[:, width : 2 * width])
        assert (before[:, :width] != after[:, :width]).all()
        assert (before[:, 2 * width :] != after[:, 2 * width :]).all()


def test_every_reason_is_listed_once_with_its_count() -> None:
    tuned = trained("gpt2", "LoRA r=2 on q,v; adapters after FFN; deep prompts length=3 on every layer")
    with pytest.raises(MergeError) as caught:
        pc.merge(tuned)
    assert str(caught.value) == (
        "the compiled model cannot be merged\n"
        "  adapter at feed_forward (2x): an activation separates its two projections\n"
        "  deep_prompts at attention.core (2x): no weight of the base adds keys and values to an attention"
    )


def test_a_tied_weight_is_refused_or_untied() -> None:
    tuned = trained("gpt2", "LoRA r=2 on embedding")
    with pytest.raises(MergeError) as caught:
        pc.merge(tuned)
    assert str(caught.value) == (
        "the compiled model cannot be merged\n"
        "  transformer.wte.weight: the weight is also lm_head.weight, which would change too: "
        "merge(tuned, untie=True)"
    )
    merged = pc.merge(tuned, untie=True)
    torch.testing.assert_close(logits(merged, "gpt2"), logits(tuned, "gpt2"), atol=1e-5, rtol=1e-5)
    assert torch.equal(merged.get_parameter("lm_head.weight"), tuned.get_parameter("lm_head.weight"))
    assert merged.config.tie_word_embeddings is False
    assert tuned.config.tie_word_embeddings is True


def test_a_trained_copy_takes_the_place_of_what_it_copied() -> None:
    tuned = trained("bert", "LoRA r=2 on q,v; train norm")
    merged = pc.merge(tuned)
    torch.testing.assert_close(logits(merged, "bert"), logits(tuned, "bert"), atol=1e-5, rtol=1e-5)


def test_a_bfloat16_weight_is_rounded_once() -> None:
    inserted = LinearLoRA(torch.randn(4, 64), torch.randn(64, 4), 0.7).bfloat16()
    weight = torch.randn(64, 64).bfloat16()
    exact = weight.double() + 0.7 * inserted.up.double() @ inserted.down.double()
    folded = fold(inserted, {"weight": weight})["weight"]
    assert folded.dtype == torch.bfloat16
    assert (folded != exact.bfloat16()).float().mean() < 0.001


def test_only_compiled_models_are_merged() -> None:
    with pytest.raises(PeftCompilerError, match="a Linear that was not compiled was given"):
        pc.merge(nn.Linear(2, 2))
