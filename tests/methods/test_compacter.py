"""What Compacter alone promises: Kronecker products, and factors that all adapters of a rule share."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

import peft_compiler as pc
from peft_compiler.methods import Compacter
from peft_compiler.methods.compacter import Factors, HypercomplexLinear
from peft_compiler.testing.places import examples
from tests import zoo
from tests.test_compiling import stir

SITE = examples()["feed-forward edge"].site


def whole(linear: HypercomplexLinear, factors: torch.Tensor) -> torch.Tensor:
    """The sum of Kronecker products, formed."""
    inner = linear.left @ linear.right
    return torch.stack([torch.kron(factors[i], inner[i]) for i in range(len(factors))]).sum(0)


def test_an_adapter_is_the_formula_of_its_paper() -> None:
    module = Compacter(width=4, n=2, rank=3).build(SITE, nn.Identity(), torch.Generator().manual_seed(0))
    nn.init.normal_(module.up.right)
    nn.init.normal_(module.down.bias)
    x, factors = torch.randn(3, 5, 8), module.factors()
    narrow = functional.gelu(x @ whole(module.down, factors) + module.down.bias)
    torch.testing.assert_close(module(x), x + narrow @ whole(module.up, factors) + module.up.bias)


def factors_of(tuned: nn.Module) -> list[Factors]:
    return [
        module for _, module in tuned.named_modules(remove_duplicate=False) if isinstance(module, Factors)
    ]


def test_one_set_of_factors_is_shared_counted_copied_and_saved_once(tmp_path: Path) -> None:
    model = zoo.build("t5")
    tuned = pc.compile(model, "compacter adapters width=4; lora r=2 on q", zoo.inputs("t5"))
    assert len(factors_of(tuned)) == 8
    # 4 adapters of 2 (32 + 4) + 32 + 4 and 4³ shared in each tower's layers; 6 queries with LoRA.
    assert tuned.compilation.plan.trainable == 8 * (2 * 36 + 36) + 64 + 6 * 2 * 64
    stir(tuned)
    pc.save(tuned, tmp_path / "adapter")
    for other in (tuned, copy.deepcopy(tuned), pickle.loads(pickle.dumps(tuned))):
        assert len({id(factors.matrices) for factors in factors_of(other)}) == 1
    loaded = pc.load(model, tmp_path / "adapter", zoo.inputs("t5"))
    assert len({id(factors.matrices) for factors in factors_of(loaded)}) == 1
    with torch.no_grad():
        ours, theirs = (m(**zoo.inputs("t5")).logits for m in (tuned, loaded))
    assert torch.equal(ours, theirs)


def test_two_rules_have_factors_of_their_own() -> None:
    tuned = pc.compile(
        zoo.build("gpt2"), "compacter adapters width=4 after attention; compacter adapters width=4 after FFN"
    )
    assert len({id(factors.matrices) for factors in factors_of(tuned)}) == 2


def test_the_width_is_a_multiple_of_n_near_a_thirtysecond() -> None:
    plan = pc.plan(zoo.build("bert"), "compacter adapters", zoo.inputs("bert"))
    assert {insertion.method.width for insertion in plan.insertions} == {4}


@pytest.mark.parametrize(
    ("method", "problems"),
    [
        (
            Compacter(width=4, n=3),
            [
                "n=3 does not divide the 8 features of the place; take a divisor of both",
                "n=3 does not divide the 4 features of the narrow layer; take a divisor of both",
            ],
        ),
        (Compacter(width=8), ["width=8 is no bottleneck: the place is 8 wide; take less"]),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(method: Compacter, problems: list[str]) -> None:
    assert list(method.problems(SITE)) == problems
