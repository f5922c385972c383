"""What DoRA alone promises, and that peft computes the same."""

from typing import Any

import peft
import pytest
import torch
from torch import nn

from peft_compiler.methods import DoRA
from peft_compiler.methods._weights import matrix_of
from peft_compiler.testing.places import examples
from tests.methods.peft_oracle import compare

EXAMPLES = examples()


def built(method: DoRA, name: str) -> nn.Module:
    example = EXAMPLES[name]
    return method.build(example.site, example.host, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "name", ["linear", "rows of a transposed", "embedding", "grouped conv2d", "rows of experts"]
)
def test_the_magnitudes_are_the_lengths_of_the_rows(name: str) -> None:
    example, module = EXAMPLES[name], built(DoRA(r=2), name)
    torch.testing.assert_close(module.magnitude, matrix_of(example.site, example.host).norm(dim=-1))
    nn.init.normal_(module.up)
    lengths = module.mapped(matrix_of(example.site, example.host)).norm(dim=-1)
    torch.testing.assert_close(lengths, module.magnitude)


def test_the_norm_is_a_constant_to_the_gradient() -> None:
    example, module = EXAMPLES["linear"], built(DoRA(r=2, alpha=6), "linear")
    nn.init.normal_(module.up)
    weight = example.host.weight.detach()
    module(weight).sum().backward()
    direction = (weight + 3.0 * module.up @ module.down).detach()
    ratio = module.magnitude.detach() / direction.norm(dim=1)
    torch.testing.assert_close(module.up.grad, 3.0 * torch.outer(ratio, module.down.detach().sum(1)))
    torch.testing.assert_close(module.magnitude.grad, direction.sum(1) / direction.norm(dim=1))


def test_a_row_of_zeros_stays_finite() -> None:
    host = nn.Linear(8, 6)
    nn.init.zeros_(host.weight[0])
    module = DoRA(r=2).build(EXAMPLES["linear"].site, host, torch.Generator())
    assert torch.equal(module(host.weight), host.weight)
    module(host.weight).sum().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in module.parameters())


def test_half_precision_is_the_identity_too() -> None:
    example = EXAMPLES["linear"]
    host = nn.Linear(8, 6).bfloat16()
    module = DoRA(r=2).build(example.site, host, torch.Generator()).bfloat16()
    assert torch.equal(module(host.weight), host.weight)


def test_what_does_not_fit_is_refused_with_the_reason() -> None:
    assert list(DoRA(r=7).problems(EXAMPLES["linear"].site)) == [
        "r=7 exceeds the rank of a 6 x 8 weight: take r <= 6"
    ]
    assert list(DoRA(r=3).problems(EXAMPLES["grouped conv2d"].site)) == [
        "r=3 does not divide among 2 groups of channels: take a multiple of 2"
    ]


FACTORS = {"down": "lora_A.default.weight", "up": "lora_B.default.weight"}
MAGNITUDE = {"magnitude": "lora_magnitude_vector.default.weight"}
LOOKED_UP = {"down": "lora_embedding_A.default", "up": "lora_embedding_B.default"}


@pytest.mark.parametrize(
    ("name", "spec", "targets", "settings", "factors"),
    [
        ("llama", "DoRA r=4 alpha=6 on q,v,down", ["q_proj", "v_proj", "down_proj"], {}, FACTORS),
        ("gpt2", "DoRA r=4 alpha=6 on up", ["c_fc"], {"fan_in_fan_out": True}, FACTORS),
        ("llama", "DoRA r=4 alpha=6 on embedding", ["embed_tokens"], {}, LOOKED_UP),
    ],
)
def test_logits_and_gradients_are_peft_s(
    name: str, spec: str, targets: list[str], settings: dict[str, Any], factors: dict[str, str]
) -> None:
    config = peft.LoraConfig(r=4, lora_alpha=6, use_dora=True, target_modules=targets, **settings)
    compare(name, spec, config, factors | MAGNITUDE)
