"""What LoReFT and DiReFT promise: the formulas of their paper, at the positions that were asked for."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

import peft_compiler as pc
from peft_compiler.methods import DiReFT, LoReFT, Method
from peft_compiler.methods.loreft import orthonormal
from peft_compiler.site import Site
from peft_compiler.testing.places import examples
from tests import zoo
from tests.test_compiling import stir

SITE = examples()["block"].site


def built(method: Method) -> nn.Module:
    return built_at(SITE, method)


def built_at(site: Site, method: Method) -> nn.Module:
    module = method.build(site, nn.Identity(), torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


def edited(module: nn.Module, h: Tensor) -> Tensor:
    """The formulas, written out once more."""
    if hasattr(module, "rotation"):
        r = orthonormal(module.rotation)
        return h + (h @ module.source.T + module.bias - h @ r.T) @ r
    return h + (h @ module.down.T + module.bias) @ module.up


@pytest.mark.parametrize("kind", [LoReFT, DiReFT])
@pytest.mark.parametrize(
    ("first", "last", "positions"),
    [
        (None, None, range(6)),
        (2, None, [0, 1]),
        (None, 1, [5]),
        (2, 1, [0, 1, 5]),
        (4, 4, range(6)),
        (9, 9, range(6)),
    ],
)
def test_the_chosen_positions_and_no_others_are_edited(
    kind: type[LoReFT | DiReFT], first: int | None, last: int | None, positions: list[int]
) -> None:
    module, h = built(kind(r=3, first=first, last=last)), torch.randn(2, 6, 8)
    given, expected = module(h), edited(module, h)
    others = [position for position in range(6) if position not in positions]
    torch.testing.assert_close(given[:, list(positions)], expected[:, list(positions)])
    assert torch.equal(given[:, others], h[:, others])


@pytest.mark.parametrize("kind", [LoReFT, DiReFT])
def test_where_examples_stand_in_the_second_axis_positions_are_in_the_first(
    kind: type[LoReFT | DiReFT],
) -> None:
    module, h = built(kind(r=3, first=1)), torch.randn(6, 2, 8)
    turned = built_at(replace(SITE, batch_axis=1), kind(r=3, first=1))
    turned.load_state_dict(module.state_dict())
    torch.testing.assert_close(turned(h), module(h.transpose(0, 1)).transpose(0, 1))


def test_a_step_of_decoding_is_neither_first_nor_last() -> None:
    h = torch.randn(2, 1, 8)
    assert torch.equal(built(LoReFT(r=3, first=2, last=2))(h), h)
    assert not torch.equal(built(LoReFT(r=3))(h), h)


def test_the_rows_of_the_rotation_are_orthonormal_and_stay_where_they_are() -> None:
    fresh = LoReFT(r=3).build(SITE, nn.Identity(), torch.Generator().manual_seed(0))
    torch.testing.assert_close(orthonormal(fresh.rotation), fresh.rotation)
    moved = orthonormal(fresh.rotation + torch.randn(3, 8))
    torch.testing.assert_close(moved @ moved.T, torch.eye(3))
    assert orthonormal(fresh.rotation.bfloat16()).dtype == torch.bfloat16


def test_without_orthonormal_rows_the_formula_is_the_same() -> None:
    module, h = built(LoReFT(r=3, orthonormal=False)), torch.randn(2, 6, 8)
    r = module.rotation
    torch.testing.assert_close(module(h), h + (h @ module.source.T + module.bias - h @ r.T) @ r)


def test_direft_starts_as_the_identity_and_loreft_does_not() -> None:
    h = torch.randn(2, 6, 8)
    draws = torch.Generator().manual_seed(0)
    assert torch.equal(DiReFT(r=3).build(SITE, nn.Identity(), draws)(h), h)
    assert not torch.equal(LoReFT(r=3).build(SITE, nn.Identity(), draws)(h), h)


@pytest.mark.parametrize("name", ["gpt2", "bert", "torch_encoder"])
def test_blocks_of_every_kind_are_edited_beside_other_methods(name: str) -> None:
    tuned = pc.compile(zoo.build(name), "loreft r=2 first=2; lora r=2 on q; adapters width=3 after FFN")
    stir(tuned)
    assert pc.verify(tuned).ok


@pytest.mark.parametrize("spec", ["loreft r=2", "direft r=2 first=1"])
def test_blocks_may_return_lists(spec: str) -> None:
    # The first GPT's blocks give [states], or [states, attention].
    model = OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=zoo.VOCABULARY, n_embd=32, n_layer=2, n_head=4))
    tuned = pc.compile(model.eval(), spec)
    stir(tuned)
    report = pc.verify(tuned)
    assert report.ok, str(report)
    given = tuned(**zoo.inputs("gpt2"), output_attentions=True)
    assert torch.equal(given.logits, tuned(**zoo.inputs("gpt2")).logits)
    assert len(given.attentions) == 2
    assert isinstance(tuned.transformer.h[0](torch.randn(1, 3, 32)), list)


def test_decoding_in_steps_is_promised_where_every_position_is_edited() -> None:
    assert LoReFT(r=2).decodes_in_steps()
    tuned = pc.compile(zoo.build("gpt2"), "loreft r=2 last=2")
    report = {finding.promise: finding.detail for finding in pc.verify(tuned).findings}
    assert report["decoding step by step equals decoding at once"] == "not promised by the settings of loreft"


@pytest.mark.parametrize(
    ("method", "problem"),
    [
        (LoReFT(r=9), "r=9 is no subspace: the place is 8 wide; take less"),
        (DiReFT(r=9), "r=9 exceeds the rank of an edit of 8 features; take less"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(method: Method, problem: str) -> None:
    assert list(method.problems(SITE)) == [problem]
