"""What IA3, BitFit and SSF promise, each alone: where they stand, what they refuse, what merges."""

from dataclasses import replace

import peft
import pytest
import torch
from torch import nn

import peft_compiler as pc
from peft_compiler.methods import IA3, SSF, BitFit, Method, NoMerge
from peft_compiler.site import Projection, Role, Site
from peft_compiler.testing.places import ROWS, examples
from tests import zoo
from tests.methods.peft_oracle import compare

EXAMPLES = examples()
STACKED = "the experts lie stacked in one op, whose output no single expert has: choose another place"
SOME_CHANNELS = "the role has only some channels of a convolution: choose a place that has all of them"


def with_role(name: str, role: Role) -> Site:
    return replace(EXAMPLES[name].site, role=role)


def with_rows(name: str) -> Site:
    site = EXAMPLES[name].site
    assert isinstance(site.place, Projection)
    return replace(site, place=replace(site.place, rows=ROWS), width_out=len(ROWS))


def moved(name: str, spec: str) -> nn.Module:
    tuned = pc.compile(zoo.build(name), spec, zoo.inputs(name))
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=draws), alpha=0.3)
    return tuned


@pytest.mark.parametrize(
    ("method", "site", "problem"),
    [
        (
            IA3(),
            with_role("grouped conv2d", Role.DOWN),
            "what flows in is divided among groups of channels: choose another place",
        ),
        (
            IA3(),
            with_rows("down"),
            "what flows into the role flows into other rows too: choose a place that has them all",
        ),
        (IA3(), with_role("experts", Role.KEY), STACKED),
        (BitFit(add=True), EXAMPLES["experts"].site, STACKED),
        (
            BitFit(),
            EXAMPLES["linear without bias"].site,
            "there is no bias here: choose places that have one, or take add=true to add it",
        ),
        (BitFit(), with_rows("conv1d"), SOME_CHANNELS),
        (SSF(), with_rows("conv1d"), SOME_CHANNELS),
        (SSF(), EXAMPLES["experts"].site, STACKED),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(method: Method, site: Site, problem: str) -> None:
    assert list(method.problems(site)) == [problem]


@pytest.mark.parametrize(
    ("method", "name", "because"),
    [
        (BitFit(add=True), "linear without bias", "the base has no bias that could take the shift"),
        (SSF(), "norm without bias", "the base has no bias that could take the shift"),
    ],
)
def test_what_cannot_take_a_shift_is_not_merged(method: Method, name: str, because: str) -> None:
    rule = method.merge_rule(EXAMPLES[name].site)
    assert isinstance(rule, NoMerge)
    assert rule.because == because


def test_a_norm_that_multiplies_by_no_plain_parameter_is_not_merged() -> None:
    # Gemma's norms multiply by one plus their weight.
    tuned = moved("gemma3", "SSF on norm")
    with pytest.raises(pc.MergeError) as caught:
        pc.merge(tuned)
    assert caught.value.problems == (
        "ssf at norm (13x): the norm multiplies by no parameter that could take the scale",
    )


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("gpt2", "IA3; SSF"),
        ("llama", "LoRA r=2 on k,v,down; IA3"),
        ("llama", "IA3; LoRA r=2 on k,v,down"),
        ("handmade", "SSF; IA3; BitFit; LoRA r=2 on all linear"),
        ("bert", "BitFit on linear,norm,head; IA3"),
        ("mixtral", "LoRA r=2 on down; IA3"),
    ],
)
def test_merged_equals_unmerged_in_plan_order(name: str, spec: str) -> None:
    tuned = moved(name, spec)
    with torch.no_grad():
        before, plain = (model(**zoo.inputs(name)) for model in (tuned, zoo.build(name)))
        after = pc.merge(tuned)(**zoo.inputs(name))
    first, base, merged = (
        out if isinstance(out, torch.Tensor) else out.logits for out in (before, plain, after)
    )
    torch.testing.assert_close(merged, first, atol=1e-5, rtol=1e-5)
    assert (first - base).abs().max() > 1e-3


def test_ia3_scales_keys_values_and_the_inner_activation_of_every_attention() -> None:
    plan = pc.plan(zoo.build("t5"), "IA3", zoo.inputs("t5"))
    roles = {
        (i.site.role, i.site.cross, i.wiring.value, i.site.width_in, i.site.width_out)
        for i in plan.insertions
    }
    assert roles == {
        (Role.KEY, False, "after", 32, 32),
        (Role.VALUE, False, "after", 32, 32),
        (Role.KEY, True, "after", 32, 32),
        (Role.VALUE, True, "after", 32, 32),
        (Role.DOWN, False, "before", 64, 32),
    }


def test_rows_of_no_insertion_are_bit_for_bit_the_base_s() -> None:
    tuned, base = moved("gpt2", "IA3 on v; BitFit on k"), zoo.build("gpt2")
    x = torch.randn(2, 5, zoo.HIDDEN)
    path = "transformer.h.0.attn.c_attn"
    with torch.no_grad():
        ours, theirs = (model.get_submodule(path)(x).split(zoo.HIDDEN, -1) for model in (tuned, base))
    assert torch.equal(ours[0], theirs[0])
    assert (ours[1] != theirs[1]).any()
    assert (ours[2] != theirs[2]).any()


@pytest.mark.parametrize(
    ("name", "where", "targets", "feed_forward", "shape"),
    [
        ("t5", "k,v", ["k", "v"], [], (-1, 1)),
        ("t5", "down", ["wo"], ["wo"], (1, -1)),
        ("llama", "k,v", ["k_proj", "v_proj"], [], (-1, 1)),
        ("llama", "down", ["down_proj"], ["down_proj"], (1, -1)),
    ],
)
def test_ia3_is_peft_s(
    name: str, where: str, targets: list[str], feed_forward: list[str], shape: tuple[int, int]
) -> None:
    config = peft.IA3Config(target_modules=targets, feedforward_modules=feed_forward)
    compare(
        name, f"IA3 on {where}", config, {"factor": "ia3_l.default"}, lambda _, factor: factor.reshape(shape)
    )
