"""What every method must satisfy, at every kind of place where it may stand. A new method adds one row."""

import pickle
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from peft_compiler.methods import (
    BOFT,
    HRA,
    IA3,
    METHODS,
    OFT,
    SSF,
    AdaLoRA,
    Adapter,
    BitFit,
    Compacter,
    DeepPrompts,
    DiReFT,
    DoRA,
    FourierFT,
    GatedAdapter,
    GatedLoRA,
    InvertibleAdapter,
    LLaMAAdapter,
    LoHa,
    LoKr,
    LoRA,
    LoReFT,
    Method,
    MiSS,
    NoMerge,
    ParallelAdapter,
    PfeifferAdapter,
    Prefix,
    Prompt,
    PTuning,
    RandLoRA,
    TrainableTokens,
    TrainedCopy,
    VeRA,
    Wiring,
)
from peft_compiler.site import Projection
from tests.methods.places import Example, examples

EXAMPLES = examples()
PROJECTIONS = tuple(name for name, example in EXAMPLES.items() if isinstance(example.site.place, Projection))
SPECS: dict[Method, tuple[str, ...]] = {
    LoRA(r=2): PROJECTIONS,
    LoRA(r=4, alpha=3.0, dropout=0.5): (
        "linear",
        "rows of a linear",
        "transposed",
        "conv1d",
        "circular conv1d",
    ),
    LoRA(r=4, rank_stabilised=True, bias=True): (
        "linear",
        "rows of a linear",
        "transposed",
        "grouped conv2d",
    ),
    LoRA(r=2, init="kaiming", freeze_a=True): ("linear", "embedding", "conv1d", "rows of experts"),
    LoRA(r=3, init="pissa", alpha=6.0, dropout=0.5): ("linear", "rows of a transposed", "circular conv1d"),
    LoRA(r=2, init="pissa"): ("embedding", "experts", "rows of transposed experts"),
    LoRA(r=4, init="olora", freeze_a=True): ("linear", "rows of a transposed", "conv3d"),
    DoRA(r=2): PROJECTIONS,
    DoRA(r=4, alpha=3.0): ("linear", "rows of a transposed"),
    VeRA(r=5): PROJECTIONS,
    VeRA(r=12, d_initial=1.0, seed=3): ("linear", "rows of a transposed"),
    RandLoRA(r=4): PROJECTIONS,
    RandLoRA(r=20, alpha=3.0, seed=3): ("linear", "rows of a transposed"),
    LoHa(r=2): PROJECTIONS,
    LoHa(r=4, alpha=3.0): ("linear", "rows of a transposed"),
    LoKr(r=1): PROJECTIONS,
    LoKr(r=1, alpha=3.0, factor=2, decompose_both=True): (
        "linear",
        "rows of a transposed",
        "rows of experts",
    ),
    LoKr(r=8, factor=1): ("linear", "conv1d"),
    OFT(block_size=2): PROJECTIONS,
    OFT(block_size=4, shared=True): ("linear", "rows of a transposed", "rows of experts"),
    BOFT(block_size=2): PROJECTIONS,
    BOFT(block_size=2, factors=3): ("linear", "rows of a transposed", "rows of experts", "conv1d"),
    HRA(r=2): PROJECTIONS,
    HRA(r=6): ("linear", "rows of a transposed", "rows of experts"),
    FourierFT(n=9): PROJECTIONS,
    FourierFT(n=16, alpha=3.0, init="zero"): ("linear", "rows of a transposed", "rows of experts"),
    MiSS(r=2): PROJECTIONS,
    MiSS(r=3): ("linear", "rows of a transposed", "rows of experts", "conv1d"),
    AdaLoRA(r=2): PROJECTIONS,
    AdaLoRA(r=4, target_r=1, alpha=3.0): ("linear", "rows of a transposed", "rows of experts"),
    Adapter(): ("attention edge", "feed-forward edge", "mixer edge"),
    Adapter(width=3, activation="relu"): ("feed-forward edge", "block"),
    Adapter(width=3, init="near_zero", layer_norm=True): ("feed-forward edge", "block"),
    Adapter(width=3, rank=2): ("attention edge",),
    GatedAdapter(width=3): ("attention edge", "feed-forward edge", "mixer edge"),
    GatedLoRA(r=2): ("linear", "rows of a linear", "transposed"),
    Compacter(width=4): ("attention edge", "feed-forward edge", "mixer edge"),
    Compacter(width=6, n=2, rank=3, activation="relu"): ("feed-forward edge",),
    ParallelAdapter(): ("attention edge", "feed-forward edge", "mixer edge"),
    ParallelAdapter(width=3, scale=4.0): ("feed-forward edge",),
    ParallelAdapter(width=3, scale="learned", activation="gelu"): ("feed-forward edge",),
    PfeifferAdapter(): ("attention edge", "feed-forward edge", "mixer edge"),
    DeepPrompts(length=5): ("core",),
    DeepPrompts(length=1, scale=0.02): ("core",),
    DeepPrompts(length=3, reparametrised=True, width=4): ("core",),
    Prefix(length=3, width=4): ("core",),
    LLaMAAdapter(length=3): ("core",),
    Prefix(length=5, reparametrised=False): ("core",),
    Prompt(length=5): ("input",),
    Prompt(length=5, init="random"): ("input",),
    Prompt(length=2, ensemble=3): ("input",),
    PTuning(length=3): ("input",),
    PTuning(template="[P] {x} [P]", encoder="mlp"): ("input",),
    PTuning(length=2, layers=1, width=5): ("input",),
    PTuning(encoder="none"): ("input",),
    Prompt(length=5, labels=("no", "oh yes"), tokens=((1,), (4, 2))): ("input",),
    LoReFT(r=3): ("block",),
    LoReFT(r=8, first=2, last=1): ("block",),
    DiReFT(r=3): ("block",),
    DiReFT(r=2, last=2): ("block",),
    InvertibleAdapter(): ("embedding", "head"),
    InvertibleAdapter(width=2, activation="tanh"): ("embedding", "head"),
    TrainableTokens(tokens=(5, 1)): ("embedding",),
    TrainedCopy(): ("head", "embedding", "norm"),
    IA3(): (
        "key",
        "rows of a value",
        "down",
        "transposed down",
        "conv1d down",
        "down of experts",
        "down of transposed experts",
    ),
    BitFit(): ("linear", "rows of a linear", "transposed", "conv1d", "head", "norm", "norm of channels"),
    BitFit(add=True): ("linear without bias", "norm without bias", "rows of a transposed"),
    SSF(): (
        "linear",
        "linear without bias",
        "rows of a transposed",
        "embedding",
        "grouped conv2d",
        "norm",
        "norm without bias",
        "norm of channels",
    ),
}
STARTING_AT_CONSTANTS = (BOFT, MiSS, OFT, BitFit, IA3, RandLoRA, SSF, TrainableTokens, VeRA)
CASES = [
    pytest.param(method.at(EXAMPLES[name].site), EXAMPLES[name], id=f"{method!r} at {name}")
    for method, names in SPECS.items()
    for name in names
]
every_case = pytest.mark.parametrize(("method", "example"), CASES)


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
