"""What adapters, deep prompts and trained copies promise, each alone; and what a method must declare."""

from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional

from peft_compiler.errors import MethodError
from peft_compiler.methods import METHODS, Adapter, DeepPrompts, Method, TrainedCopy
from peft_compiler.site import Projection, Role
from peft_compiler.testing.places import ANCHOR, examples

EXAMPLES = examples()


@pytest.mark.parametrize(("width_out", "width"), [(768, 48), (32, 2), (8, 1)])
def test_an_adapter_is_a_sixteenth_of_its_place_wide(width_out: int, width: int) -> None:
    site = replace(EXAMPLES["feed-forward edge"].site, width_out=width_out)
    assert Adapter().at(site).width == width
    assert Adapter().parameter_count(site) == 2 * width * width_out + width + width_out


def test_an_adapter_is_the_formula_of_its_paper() -> None:
    example = EXAMPLES["feed-forward edge"]
    module = Adapter(width=3).build(example.site, example.host, torch.Generator().manual_seed(0))
    nn.init.normal_(module.up.weight)
    narrow = functional.gelu(example.x @ module.down.weight.T + module.down.bias)
    torch.testing.assert_close(module(example.x), example.x + narrow @ module.up.weight.T + module.up.bias)


def test_an_adapter_that_is_no_bottleneck_is_refused() -> None:
    site = EXAMPLES["feed-forward edge"].site
    assert list(Adapter(width=8).problems(site)) == [
        "width=8 is no bottleneck: the place is 8 wide; take less"
    ]
    assert list(Adapter(width=7).problems(site)) == []


def test_prompts_have_the_shapes_of_the_keys_and_values_of_their_attention() -> None:
    example = EXAMPLES["core"]
    keys, values = DeepPrompts(length=5).build(example.site, example.host, torch.Generator())()
    assert (tuple(keys.shape), tuple(values.shape)) == ((2, 5, 8), (2, 5, 6))


def test_prompts_start_with_the_given_deviation() -> None:
    example = EXAMPLES["core"]
    for scale in (1.0, 0.02):
        method = DeepPrompts(length=500, scale=scale)
        for tensor in method.build(example.site, example.host, torch.Generator().manual_seed(0))():
            assert tensor.std().item() == pytest.approx(scale, rel=0.05)


def test_a_copy_is_apart_from_its_host() -> None:
    example = EXAMPLES["head"]
    copied = TrainedCopy().build(example.site, example.host.requires_grad_(False), torch.Generator())
    with torch.no_grad():
        copied.weight.zero_()
    assert example.host.weight.any()
    assert not example.host.weight.requires_grad
    assert copied.weight.requires_grad


def test_a_copy_of_a_part_of_a_module_is_refused() -> None:
    site = EXAMPLES["head"].site
    assert isinstance(site.place, Projection)
    part = replace(site, place=replace(site.place, anchor=ANCHOR), module_type="Decoder")
    assert list(TrainedCopy().problems(part)) == [
        "its weight is not all there is to a Decoder: adapt it with LoRA instead"
    ]


def test_sentence_names_are_unique() -> None:
    spoken = [name for method in METHODS for name in method.spoken]
    assert len(spoken) == len(set(spoken))
    for method in METHODS:
        assert set(method.spoken_fields.values()) <= set(method.model_fields)


def test_a_forgotten_declaration_fails_at_import() -> None:
    with pytest.raises(
        MethodError,
        match=r"^Forgetful does not declare paper, attaches, spoken, default_roles, identity, merge$",
    ):

        class Forgetful(Method, frozen=True):
            """Declares nothing."""


def test_a_default_place_where_it_cannot_attach_fails_at_import() -> None:
    with pytest.raises(MethodError, match=r"^Lost stands by default at head, where it cannot attach$"):

        class Lost(Adapter, frozen=True):
            """An adapter that would like to be elsewhere."""

            default_roles: ClassVar[tuple[Role, ...]] = (Role.HEAD,)
