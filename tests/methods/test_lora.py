"""What LoRA alone promises."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import nn

import peft_compiler as pc
from peft_compiler.errors import LoweringError
from peft_compiler.methods import LoRA, Wiring
from peft_compiler.methods._weights import matrix_of
from peft_compiler.site import Projection, Role, Site
from peft_compiler.testing.places import ANCHOR, examples
from tests import zoo

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
            LoRA(r=2, bias=True),
            "linear without bias",
            "bias=true has nothing to train: the projection adds no bias of its own; take bias=false",
        ),
        (
            LoRA(r=2, init="pissa"),
            "grouped conv2d",
            "init=pissa factors one matrix: the convolution has one for each of 2 groups of channels; "
            "take init=gaussian",
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


def test_a_rank_stabilised_scale_is_alpha_over_the_root_of_r() -> None:
    assert LoRA(r=16, alpha=8, rank_stabilised=True).scale == 2.0


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
        nn.init.normal_(module.update.up)
        changed = (module(weight) != weight).any(0).any(2 - axis)
        assert changed.tolist() == [True, True, False, False, True, True]


def test_experts_are_joined_on_the_weight_and_all_else_beside() -> None:
    for name, example in EXAMPLES.items():
        if isinstance(example.site.place, Projection):
            expected = Wiring.ON_WEIGHT if "experts" in name else Wiring.BESIDE
            assert LoRA().wiring(example.site) is expected


def test_kaiming_is_uniform_with_the_same_variance() -> None:
    site = Site(Role.QUERY, "", Projection("weight", "linear"), 1000, 500, shape=(500, 1000))
    module = LoRA(r=100, init="kaiming").build(site, nn.Linear(1, 1), torch.Generator().manual_seed(0))
    assert module.down.std().item() == pytest.approx((3 * 1000) ** -0.5, rel=0.02)
    assert module.down.abs().max() <= 1000**-0.5
    assert not module.up.any()


@pytest.mark.parametrize("name", ["linear", "rows of a transposed", "embedding", "experts"])
def test_pissa_starts_at_the_best_approximation_of_its_rank(name: str) -> None:
    example = EXAMPLES[name]
    module = built(LoRA(r=3, alpha=6, init="pissa"), name)
    start = (module.update if name == "experts" else module).start
    weight = matrix_of(example.site, example.host)
    left = torch.linalg.svdvals(weight - start.delta())
    torch.testing.assert_close(left[..., : weight.shape[-2] - 3], torch.linalg.svdvals(weight)[..., 3:])
    torch.testing.assert_close(start.down.norm(dim=-1), start.up.norm(dim=-2))


def test_olora_starts_at_orthonormal_columns_that_give_the_first_columns_of_the_weight() -> None:
    example, module = EXAMPLES["linear"], built(LoRA(r=3, init="olora"), "linear")
    start = module.start
    torch.testing.assert_close(start.up.T @ start.up, torch.eye(3))
    torch.testing.assert_close(start.delta()[:, :3], example.host.weight[:, :3])


def test_where_it_started_is_saved_and_not_trained() -> None:
    module = built(LoRA(r=3, init="pissa"), "linear")
    assert set(module.state_dict()) == {"update.down", "update.up", "start.down", "start.up"}
    assert {name for name, _ in module.named_parameters()} == {"update.down", "update.up"}


def test_a_frozen_a_is_saved_and_not_trained() -> None:
    module = built(LoRA(r=2, freeze_a=True), "linear")
    assert set(module.state_dict()) == {"down", "up"}
    assert [name for name, _ in module.named_parameters()] == ["up"]


def test_a_trained_bias_is_a_shift_of_the_site_s_rows() -> None:
    module = built(LoRA(r=2, bias=True), "rows of a linear")
    nn.init.ones_(module.shift)
    assert torch.equal(module(torch.randn(3, 8)), torch.ones(3, 4))


def test_ranks_may_differ_by_role_and_layer() -> None:
    spec = "LoRA r=2 on q; LoRA r=4 on v of layers 0; LoRA r=8 alpha=2 on v of layers 1"
    planned = pc.plan(zoo.build("llama"), spec)
    ranks = {(i.site.role, i.site.layer): i.method.model_dump()["r"] for i in planned.insertions}
    assert ranks == {(Role.QUERY, 0): 2, (Role.QUERY, 1): 2, (Role.VALUE, 0): 4, (Role.VALUE, 1): 8}


def test_factors_of_a_quantised_weight_are_refused() -> None:
    host = nn.Linear(8, 6)
    host.weight = nn.Parameter(host.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(LoweringError) as caught:
        LoRA(r=2, init="pissa").build(EXAMPLES["linear"].site, host, torch.Generator())
    assert str(caught.value) == (
        "place: its weight is quantised (torch.int8), and has no values to start from: "
        "dequantise the base, or start at random values"
    )
