"""What FourierFT and MiSS promise, each alone, and that peft computes the same."""

from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

import peft_compiler as pc
from peft_compiler.methods import FourierFT, MiSS
from peft_compiler.testing.places import examples
from tests import zoo
from tests.methods.peft_oracle import by_peft, compare, layers_of

EXAMPLES = examples()


def built(method: FourierFT | MiSS, name: str = "linear") -> nn.Module:
    example = EXAMPLES[name]
    return method.build(example.site, example.host, torch.Generator().manual_seed(0))


def test_the_update_is_a_sum_of_cosines() -> None:
    module = built(FourierFT(n=5, alpha=3.0))
    rows, columns = torch.arange(6.0)[:, None], torch.arange(8.0)
    terms = [
        value * torch.cos(2 * torch.pi * ((place // 8) * rows / 6 + (place % 8) * columns / 8)) / 48
        for place, value in zip(module.places, module.spectrum.detach(), strict=True)
    ]
    torch.testing.assert_close(module.delta(), 3.0 * sum(terms))


def test_places_depend_on_seed_and_shape_and_none_comes_twice() -> None:
    first, again, other = (built(FourierFT(n=48, seed=seed)).places for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert sorted(first.tolist()) == list(range(48))
    assert list(built(FourierFT(n=5)).state_dict()) == ["spectrum"]


def test_coefficients_start_as_the_paper_s_or_at_nothing() -> None:
    assert built(FourierFT(n=48)).spectrum.std().item() == pytest.approx(1, abs=0.3)
    assert not built(FourierFT(n=48, init="zero")).spectrum.any()
    assert (FourierFT().starts_as_identity(), FourierFT(init="zero").starts_as_identity()) == (False, True)


@pytest.mark.parametrize(("r", "columns"), [(4, "01230123"), (3, "01201201"), (8, "01234567")])
def test_the_block_is_repeated_as_far_as_the_inputs_go(r: int, columns: str) -> None:
    module = built(MiSS(r=r))
    nn.init.normal_(module.block)
    delta = module.block[:, [int(column) for column in columns]]
    torch.testing.assert_close(module.delta(), delta)
    x = EXAMPLES["linear"].x
    torch.testing.assert_close(module(x), x @ delta.T)


def test_what_does_not_fit_is_refused_with_the_reason() -> None:
    site = EXAMPLES["linear"].site
    assert list(FourierFT(n=49).problems(site)) == [
        "n=49 exceeds the entries of a 6 x 8 weight: take n <= 48"
    ]
    assert list(MiSS(r=9).problems(site)) == ["r=9 exceeds the 8 inputs of a row: take r <= 8"]


@pytest.mark.parametrize("r", [4, 6])
def test_miss_s_logits_and_gradients_are_peft_s(r: int) -> None:
    config = peft.MissConfig(r=r, target_modules=["q_proj", "down_proj"])
    compare(
        "llama", f"MiSS r={r} on q,down", config, {"block": "miss_block.default"}, lambda _, block: block.T
    )


def test_fourierft_s_logits_and_gradients_are_peft_s() -> None:
    base: Any = zoo.build("llama")
    config = peft.FourierFTConfig(n_frequency=50, scaling=3.0, target_modules=["q_proj", "down_proj"])
    ours = pc.compile(base, "FourierFT n=50 alpha=3 on q,down")
    theirs = by_peft(base, config)
    layers = layers_of(ours, theirs)
    for mine, other in layers:
        columns = other.in_features
        other.indices["default"] = torch.stack([mine.places // columns, mine.places % columns])
        other.fourierft_spectrum["default"].data.copy_(mine.spectrum.detach())
    outputs: list[Tensor] = [model(**zoo.inputs("llama")).logits for model in (ours, theirs)]
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
    for output in outputs:
        output.square().sum().backward()
    for mine, other in layers:
        torch.testing.assert_close(
            mine.spectrum.grad, other.fourierft_spectrum["default"].grad, atol=1e-4, rtol=1e-4
        )
