"""What VeRA and RandLoRA promise of the random matrices that they share, and that peft computes the same."""

from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor, nn

import peft_compiler as pc
from peft_compiler.methods import RandLoRA, VeRA
from peft_compiler.methods._frozen import FrozenPair, Uniform
from peft_compiler.saving.save import inserted_state
from peft_compiler.testing.places import examples
from tests import zoo
from tests.methods.peft_oracle import compare

EXAMPLES = examples()


def pairs(tuned: nn.Module) -> set[FrozenPair]:
    return {module for module in tuned.modules() if isinstance(module, FrozenPair)}


@pytest.mark.parametrize("spec", ["VeRA r=8 on q,o,up", "RandLoRA r=8 on q,o,up"])
def test_a_model_holds_one_pair_for_each_shape(spec: str) -> None:
    base = zoo.build("llama")
    tuned, other = pc.compile(base, spec), pc.compile(base, spec)
    assert len(pairs(tuned)) == 2
    assert pairs(tuned).isdisjoint(pairs(other)), "moving one model would move the other's"
    assert len(pairs(tuned.double())) == 2


@pytest.mark.parametrize(
    ("spec", "saved"),
    [
        ("VeRA r=8 on q", {"query_vera.b", "query_vera.d"}),
        ("RandLoRA r=8 on q", {"query_randlora.gamma", "query_randlora.lambdas"}),
    ],
)
def test_the_pair_is_not_saved_and_comes_again(spec: str, saved: set[str], tmp_path: Path) -> None:
    base = zoo.build("llama")
    tuned = pc.compile(base, spec)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    assert {name.rpartition("inserted.")[2] for name in inserted_state(tuned)} == saved
    pc.save(tuned, tmp_path / "adapter")
    loaded = pc.load(base, tmp_path / "adapter")
    inputs = zoo.inputs("llama")
    assert torch.equal(loaded(**inputs).logits, tuned(**inputs).logits)


def test_the_pair_depends_on_seed_and_shape_alone() -> None:
    def pair(seed: int = 0, rows: int = 4) -> FrozenPair:
        return FrozenPair(seed, Uniform((rows, 8), 0.5), Uniform((6, rows), 0.25))

    assert torch.equal(pair().down, pair().down)
    assert not torch.equal(pair().down, pair(seed=1).down)
    assert not torch.equal(pair().down[:2], pair(rows=2).down)
    assert pair().down.abs().max() <= 0.5 < 2 * pair().down.abs().max()
    assert pair().up.abs().max() <= 0.25 < 2 * pair().up.abs().max()


def test_a_change_of_dtype_and_back_loses_nothing() -> None:
    pair = FrozenPair(0, Uniform((4, 8), 0.5), Uniform((6, 4), 0.5))
    before = pair.down.clone()
    assert torch.equal(pair.bfloat16().double().float().down, before)


def test_vera_is_the_formula_of_its_paper() -> None:
    example = EXAMPLES["linear"]
    module = VeRA(r=12).build(example.site, example.host, torch.Generator())
    assert (tuple(module.d.shape), tuple(module.b.shape)) == ((12,), (6,))
    assert torch.equal(module.d, torch.full((12,), 0.1))
    nn.init.normal_(module.b)
    a, b = module.pair.down, module.pair.up
    expected = example.x @ (torch.diag(module.b) @ b @ torch.diag(module.d) @ a).T
    torch.testing.assert_close(module(example.x), expected)


@pytest.mark.parametrize("name", ["linear", "rows of a linear", "conv1d", "rows of experts"])
def test_randlora_is_a_sum_of_bases_of_full_rank(name: str) -> None:
    example = EXAMPLES[name]
    built = RandLoRA(r=2, alpha=6).build(example.site, example.host, torch.Generator())
    module = built if name in ("linear", "rows of a linear") else built.update
    nn.init.normal_(module.lambdas)
    nn.init.normal_(module.gamma)
    n, up = module.lambdas.shape[-2], module.pair.up
    terms = [
        up[:, 2 * j : 2 * j + 2]
        @ torch.diag_embed(module.lambdas[..., j, :])
        @ module.pair.down
        @ torch.diag_embed(module.gamma[..., j, :])
        for j in range(n)
    ]
    delta = 3.0 * sum(terms)
    delta = delta if module.from_narrow else delta.mT
    torch.testing.assert_close(module.delta(), delta)
    assert torch.linalg.matrix_rank(delta).min() == min(delta.shape[-2:])


def test_vera_s_logits_and_gradients_are_peft_s() -> None:
    config = peft.VeraConfig(r=8, target_modules=["q_proj", "o_proj"])
    tensors = {
        "d": "vera_lambda_d.default",
        "b": "vera_lambda_b.default",
        "pair.down": "vera_A.default",
        "pair.up": "vera_B.default",
    }
    compare("llama", "VeRA r=8 on q,o", config, tensors)


@pytest.mark.parametrize(("role", "target"), [("up", "up_proj"), ("down", "down_proj"), ("q", "q_proj")])
def test_randlora_s_logits_and_gradients_are_peft_s(role: str, target: str) -> None:
    config = peft.RandLoraConfig(r=6, randlora_alpha=12, target_modules=[target])
    tensors = {
        "lambdas": "randlora_lambda.default",
        "gamma": "randlora_gamma.default",
        "pair.down": "randlora_A.default",
        "pair.up": "randlora_B.default",
    }
    compare("llama", f"RandLoRA r=6 alpha=12 on {role}", config, tensors, as_peft_has_it)


def as_peft_has_it(name: str, tensor: Tensor) -> Tensor:
    """peft keeps Λ as (r, n), and multiplies column j r + i of the wide matrix with basis i n + j."""
    if name == "lambdas":
        return tensor.T
    if name == "pair.down":
        return tensor.unsqueeze(1)
    if name == "pair.up":
        wide = tensor.unflatten(1, (-1, 6))
        return wide.mT.reshape(wide.shape)
    return tensor
