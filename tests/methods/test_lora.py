"""What LoRA alone promises."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from peft_compiler.methods import LoRA, Wiring
from peft_compiler.site import Projection, Role, Site
from tests.methods.places import ANCHOR, examples

EXAMPLES = examples()


def problems(method: LoRA, name: str) -> list[str]:
    return list(method.problems(EXAMPLES[name].site))


def built(method: LoRA, name: str) -> nn.Module:
    example = EXAMPLES[name]
    return method.build(example.site, example.host, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 0}, "greater than 0"),
        ({"alpha": 0}, "greater than 0"),
        ({"alpha": float("inf")}, "finite"),
        ({"dropout": 1.0}, "less than 1"),
        ({"dropout": -0.1}, "greater than or equal to 0"),
        ({"rank": 8}, "Extra inputs are not permitted"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LoRA.model_validate(settings)


@pytest.mark.parametrize(
    ("method", "name", "problem"),
    [
        (LoRA(r=7), "linear", "r=7 exceeds the rank of a 6 x 8 weight: take r <= 6"),
        (LoRA(r=5), "rows of a linear", "r=5 exceeds the rank of a 4 x 8 weight: take r <= 4"),
        (LoRA(r=3), "grouped conv2d", "r=3 does not divide among 2 groups of channels: take a multiple of 2"),
        (
            LoRA(r=2, dropout=0.1),
            "embedding",
            "dropout=0.1 has no input to act on: the weight takes token ids; take dropout=0",
        ),
        (
            LoRA(r=2, dropout=0.1),
            "experts",
            "dropout=0.1 has no input to act on: the weight is updated as a whole, for all tokens; "
            "take dropout=0",
        ),
        (
            LoRA(),
            "norm",
            "lora attaches to attention.key, attention.output, attention.query, attention.value, ",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(method: LoRA, name: str, problem: str) -> None:
    (found,) = problems(method, name)
    assert found.startswith(problem)
    assert found == problem or name == "norm"


def test_a_convolution_without_a_module_is_refused() -> None:
    site = EXAMPLES["conv1d"].site
    assert isinstance(site.place, Projection)
    inline = replace(site, place=replace(site.place, anchor=ANCHOR))
    assert list(LoRA(r=2).problems(inline)) == [
        "the convolution is no module of its own, which would tell its stride: choose another place"
    ]


def test_the_scale_is_alpha_over_r_and_one_by_default() -> None:
    site = EXAMPLES["linear"].site
    assert (LoRA(r=4, alpha=6).scale, LoRA(r=4).scale, LoRA(r=4).at(site).scale) == (1.5, 1.0, 1.0)
    assert LoRA(r=4).at(site).alpha == 4.0


def test_the_update_is_scale_b_a_x() -> None:
    module = built(LoRA(r=2, alpha=6), "linear")
    nn.init.normal_(module.up)
    x = torch.randn(3, 8)
    torch.testing.assert_close(module(x), 3.0 * x @ module.down.T @ module.up.T)


def test_a_is_gaussian_and_b_is_zero() -> None:
    site = Site(Role.QUERY, "", Projection("weight", "linear"), 1000, 500, shape=(500, 1000))
    module = LoRA(r=100).build(site, nn.Linear(1, 1), torch.Generator().manual_seed(0))
    assert module.down.std().item() == pytest.approx((3 * 1000) ** -0.5, rel=0.02)
    assert (module.down.abs() > 3**0.5 * module.down.std()).any(), "a uniform distribution has no such values"
    assert not module.up.any()


def test_a_token_that_is_never_trained_keeps_its_embedding() -> None:
    module = built(LoRA(r=2), "embedding")
    module(torch.tensor([1, 2])).sum().backward()
    assert module.down.grad is not None
    assert module.down.grad.any(0).tolist() == [False, True, True, False, False, False, False, False]


def test_no_dropout_no_module_for_it() -> None:
    assert list(built(LoRA(r=2), "linear").children()) == []
    assert [type(child) for child in built(LoRA(r=2, dropout=0.5), "linear").children()] == [nn.Dropout]


def test_dropout_acts_in_training_only() -> None:
    module = built(LoRA(r=2, dropout=0.5), "linear")
    nn.init.normal_(module.up)
    x = torch.randn(3, 8)
    assert torch.equal(module.eval()(x), module.eval()(x))
    assert not torch.equal(module.train()(x), module.train()(x))


def test_other_rows_of_experts_are_the_very_same_numbers() -> None:
    for name, axis in (("rows of experts", 1), ("rows of transposed experts", 2)):
        module, weight = built(LoRA(r=2), name), EXAMPLES[name].host.weight
        nn.init.normal_(module.up)
        changed = (module(weight) != weight).any(0).any(2 - axis)
        assert changed.tolist() == [True, True, False, False, True, True]


def test_experts_are_joined_on_the_weight_and_all_else_beside() -> None:
    for name, example in EXAMPLES.items():
        if isinstance(example.site.place, Projection):
            expected = Wiring.ON_WEIGHT if "experts" in name else Wiring.BESIDE
            assert LoRA().wiring(example.site) is expected
