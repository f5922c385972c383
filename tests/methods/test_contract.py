"""What every method must satisfy, at every kind of place where it may stand. A new method adds one row."""

import pickle
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from peft_compiler.methods import (
    METHODS,
    DoRA,
    FourierFT,
    Method,
    NoMerge,
    TrainedCopy,
    Wiring,
)
from peft_compiler.site import Projection
from tests.methods.cases import EXAMPLES, SPECS, STARTING_AT_CONSTANTS, every_case
from tests.methods.places import Example


def build(method: Method, example: Example, seed: int = 0) -> nn.Module:
    return method.build(example.site, example.host, torch.Generator().manual_seed(seed)).eval()


def starts_from_its_host(method: Method) -> bool:
    """Whether initial values come from the host's weight."""
    return isinstance(method, DoRA | TrainedCopy) or getattr(method, "init", None) in ("pissa", "olora")


def draws_nothing(method: Method) -> bool:
    """Whether no initial value is random."""
    starts_at_zero = isinstance(method, FourierFT) and method.init == "zero"
    copies_all = starts_from_its_host(method) and not isinstance(method, DoRA)
    return isinstance(method, STARTING_AT_CONSTANTS) or starts_at_zero or copies_all


def moved(module: nn.Module) -> nn.Module:
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draws))
    return module


def test_every_method_has_a_case() -> None:
    assert {type(method) for method in SPECS} == set(METHODS)


def test_every_role_of_every_method_has_a_wiring_it_declares() -> None:
    for method, names in SPECS.items():
        for name in names:
            site = EXAMPLES[name].site
            declared = (method.attaches[site.role], Wiring.ON_WEIGHT, Wiring.EXCHANGE_INPUT)
            assert method.wiring(site) in declared


@every_case
def test_it_fits(method: Method, example: Example) -> None:
    assert list(method.problems(example.site)) == []


@every_case
def test_the_formula_counts_what_is_built(method: Method, example: Example) -> None:
    built = build(method, example)
    shared = sum(method.shared_counts(example.site).values())
    expected = method.parameter_count(example.site) + shared
    assert sum(parameter.numel() for parameter in built.parameters()) == expected
    assert all(parameter.requires_grad for parameter in built.parameters())


@every_case
def test_a_fresh_one_is_the_identity_where_promised(method: Method, example: Example) -> None:
    fresh = build(method, example)
    output = example.wired(method.wiring(example.site), fresh)
    if method.starts_as_identity():
        assert torch.equal(output, example.host(example.x))
    elif isinstance(output, Tensor):
        assert not torch.equal(output, example.host(example.x))
    else:
        assert all(bool((tensor != 0).all()) for tensor in output)


@every_case
def test_gradients_reach_every_parameter(method: Method, example: Example) -> None:
    inserted = moved(build(method, example))
    output = example.wired(method.wiring(example.site), inserted)
    tensors = output if isinstance(output, tuple) else (output,)
    sum((tensor * torch.randn(tensor.shape)).sum() for tensor in tensors).backward()
    for name, parameter in inserted.named_parameters():
        assert parameter.grad is not None, name
        assert bool((parameter.grad != 0).any()), name


@every_case
def test_only_its_generator_is_drawn_from(method: Method, example: Example) -> None:
    before = torch.get_rng_state()
    first, again, other = (build(method, example, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = any(not torch.equal(first[name], other[name]) for name in first)
    assert drawn != draws_nothing(method)


@every_case
def test_it_is_built_in_float32_beside_a_meta_host(method: Method, example: Example) -> None:
    if starts_from_its_host(method):
        pytest.skip("needs the values of its host")
    built = method.build(example.site, deepcopy(example.host).to("meta"), torch.Generator())
    assert {(p.dtype, p.device.type) for p in built.parameters()} == {(torch.float32, "cpu")}


@every_case
def test_the_host_stays_as_it_was(method: Method, example: Example) -> None:
    before = deepcopy(example.host.state_dict())
    output: Tensor | tuple[Tensor, ...] = example.wired(
        method.wiring(example.site), moved(build(method, example))
    )
    assert output is not None
    assert all(torch.equal(tensor, before[name]) for name, tensor in example.host.state_dict().items())


@every_case
def test_the_merge_rule_is_the_wired_function(method: Method, example: Example) -> None:
    rule = method.merge_rule(example.site)
    if isinstance(rule, NoMerge):
        assert rule.because
        return
    inserted = moved(build(method, example))
    expected = example.wired(method.wiring(example.site), inserted)
    merged = merged_parameters(method, example, inserted)
    torch.testing.assert_close(
        functional_call(example.host, merged, (example.x,)), expected, atol=1e-5, rtol=1e-5
    )


def merged_parameters(method: Method, example: Example, inserted: nn.Module) -> dict[str, Tensor]:
    """What the rule gives for the site's rows, put back into whole parameters of the host."""
    whole = {name: parameter.detach().clone() for name, parameter in example.host.named_parameters()}
    place, rule = example.site.place, method.merge_rule(example.site)
    assert not isinstance(rule, NoMerge)
    if method.wiring(example.site) is Wiring.REPLACE:
        return dict(rule(inserted, whole))
    by_output = {**whole}
    if isinstance(place, Projection) and place.form in ("transposed", "embedding", "transposed_experts"):
        by_output["weight"] = whole["weight"].mT
    rows = list(range(example.site.width_out) if example.site.rows is None else example.site.rows.indices)
    axis = 1 if example.site.experts else 0
    parts = {
        name: tensor.index_select(axis if name == "weight" else 0, torch.tensor(rows))
        for name, tensor in by_output.items()
    }
    for name, tensor in rule(inserted, parts).items():
        by_output[name].index_copy_(axis if name == "weight" else 0, torch.tensor(rows), tensor)
    return whole


@every_case
def test_it_survives_copies_and_files(method: Method, example: Example) -> None:
    inserted = moved(build(method, example))
    expected = example.wired(method.wiring(example.site), inserted)
    for other in (deepcopy(inserted), pickle.loads(pickle.dumps(inserted))):
        torch.testing.assert_close(
            example.wired(method.wiring(example.site), other), expected, atol=0, rtol=0
        )


@every_case
def test_its_spec_round_trips(method: Method, example: Example) -> None:
    assert type(method).model_validate_json(method.model_dump_json()) == method
    assert method.at(example.site) == method, "filling in twice changes nothing"
