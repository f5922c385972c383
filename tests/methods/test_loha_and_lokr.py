"""What the products of LyCORIS promise, and that peft computes the same."""

import peft
import pytest
import torch
from torch import Tensor, nn

from peft_compiler.methods import LoHa, LoKr
from peft_compiler.testing.places import examples
from tests.methods.peft_oracle import compare

EXAMPLES = examples()


def test_loha_is_the_formula_of_its_paper() -> None:
    example = EXAMPLES["linear"]
    module = LoHa(r=2, alpha=6).build(example.site, example.host, torch.Generator().manual_seed(0))
    nn.init.normal_(module.down_2)
    product = (module.up_1 @ module.down_1) * (module.up_2 @ module.down_2)
    torch.testing.assert_close(module(example.host.weight), example.host.weight + 3.0 * product)
    assert torch.linalg.matrix_rank(module.delta()) == 4, "the square of r"


@pytest.mark.parametrize(
    ("method", "shapes"),
    [
        (LoKr(r=1), {"left.values": (2, 2), "right.up": (3, 1), "right.down": (1, 4)}),
        (LoKr(r=2), {"left.values": (2, 2), "right.values": (3, 4)}),
        (LoKr(r=1, factor=1), {"left.values": (1, 1), "right.up": (6, 1), "right.down": (1, 8)}),
    ],
)
def test_lokr_keeps_what_is_small_whole(method: LoKr, shapes: dict[str, tuple[int, ...]]) -> None:
    example = EXAMPLES["linear"]
    module = method.build(example.site, example.host, torch.Generator().manual_seed(0))
    assert {name: tuple(parameter.shape) for name, parameter in module.named_parameters()} == shapes


def test_lokr_is_a_kronecker_product() -> None:
    example = EXAMPLES["linear"]
    module = LoKr(r=2, alpha=6).build(example.site, example.host, torch.Generator().manual_seed(0))
    nn.init.normal_(module.left.values)
    torch.testing.assert_close(module.delta(), 3.0 * torch.kron(module.left(), module.right()))


def test_what_does_not_fit_is_refused_with_the_reason() -> None:
    site = EXAMPLES["linear"].site
    assert list(LoHa(r=7).problems(site)) == ["r=7 exceeds the rank of a 6 x 8 weight: take r <= 6"]
    assert list(LoKr(factor=5).problems(site)) == [
        "factor=5 does not divide 6 outputs: take a divisor of both widths",
        "factor=5 does not divide 8 inputs: take a divisor of both widths",
    ]


def test_loha_s_logits_and_gradients_are_peft_s() -> None:
    config = peft.LoHaConfig(r=4, alpha=6, target_modules=["q_proj", "down_proj"])
    tensors = {
        "up_1": "hada_w1_a.default",
        "down_1": "hada_w1_b.default",
        "up_2": "hada_w2_a.default",
        "down_2": "hada_w2_b.default",
    }
    compare("llama", "LoHa r=4 alpha=6 on q,down", config, tensors)


WHOLE = {"left.values": "lokr_w1.default"}


@pytest.mark.parametrize(
    ("settings", "spoken", "tensors"),
    [
        ({"r": 2}, "r=2", WHOLE | {"right.up": "lokr_w2_a.default", "right.down": "lokr_w2_b.default"}),
        ({"r": 8}, "r=8", WHOLE | {"right.values": "lokr_w2.default"}),
        (
            {"r": 1, "decompose_both": True, "decompose_factor": 4},
            "r=1 decompose_both=true factor=4",
            {
                "left.up": "lokr_w1_a.default",
                "left.down": "lokr_w1_b.default",
                "right.up": "lokr_w2_a.default",
                "right.down": "lokr_w2_b.default",
            },
        ),
    ],
)
def test_lokr_s_logits_and_gradients_are_peft_s(
    settings: dict[str, int], spoken: str, tensors: dict[str, str]
) -> None:
    config = peft.LoKrConfig(alpha=6, target_modules=["q_proj", "down_proj"], **settings)
    compare("llama", f"LoKr {spoken} alpha=6 on q,down", config, tensors)


def test_a_kernel_is_never_cut_through() -> None:
    example = EXAMPLES["conv1d"]
    module = LoKr(r=1).build(example.site, example.host, torch.Generator().manual_seed(0))
    kernel: Tensor = module.right().unflatten(1, (-1, 3))
    expected = torch.einsum("ac,bdk->abcdk", module.left(), kernel).reshape(6, 8, 3)
    torch.testing.assert_close(module.delta().reshape(6, 8, 3), expected)
