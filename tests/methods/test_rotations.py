"""What OFT, BOFT and HRA promise as rotations and reflections, and that peft computes the same."""

import peft
import pytest
import torch
from torch import Tensor, nn

from peft_compiler.methods import BOFT, HRA, OFT, Method
from peft_compiler.testing.places import examples, projection
from tests.methods.peft_oracle import compare

EXAMPLES = examples() | {"square": projection("linear", nn.Linear(8, 8), torch.randn(2, 8), widths=(8, 8))}


def moved(method: Method, name: str = "linear") -> nn.Module:
    example = EXAMPLES[name]
    module = method.build(example.site, example.host, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return module


def multiplier(module: nn.Module) -> Tensor:
    """What a weight is multiplied by from the right."""
    with torch.no_grad():
        return module.mapped(torch.eye(8))


@pytest.mark.parametrize("method", [OFT(block_size=4), OFT(block_size=2, shared=True), HRA(r=4)])
def test_angles_and_lengths_of_rows_stay(method: Method) -> None:
    weight = EXAMPLES["linear"].host.weight.detach()
    changed = moved(method)(weight)
    assert (changed - weight).abs().max() > 0.01
    torch.testing.assert_close(changed @ changed.T, weight @ weight.T)


@pytest.mark.parametrize("method", [OFT(block_size=4), BOFT(block_size=2, factors=3)])
def test_half_precision_is_the_identity_too(method: Method) -> None:
    weight = EXAMPLES["linear"].host.weight.detach().bfloat16()
    built = method.build(EXAMPLES["linear"].site, EXAMPLES["linear"].host, torch.Generator()).bfloat16()
    assert torch.equal(built(weight), weight)
    assert moved(method).bfloat16()(weight).dtype == torch.bfloat16


def test_oft_is_the_cayley_transform_of_each_block() -> None:
    module = moved(OFT(block_size=4))
    above = torch.zeros(2, 4, 4)
    above[:, *torch.triu_indices(4, 4, 1)] = module.skew.detach()
    skew, identity = above - above.mT, torch.eye(4)
    blocks = (identity - skew) @ torch.linalg.inv(identity + skew)
    torch.testing.assert_close(multiplier(module), torch.block_diag(*blocks).T)


def test_shared_blocks_are_equal() -> None:
    product = multiplier(moved(OFT(block_size=4, shared=True)))
    assert torch.equal(product[:4, :4], product[4:, 4:])


@pytest.mark.parametrize(("factors", "mixed"), [(1, 2), (2, 4), (3, 8)])
def test_each_factor_of_a_butterfly_doubles_what_is_mixed(factors: int, mixed: int) -> None:
    module = moved(BOFT(block_size=2, factors=factors), "square")
    product = multiplier(module) / module.scale.detach().unsqueeze(-1)
    torch.testing.assert_close(product @ product.T, torch.eye(8))
    expected = torch.block_diag(*torch.ones(8 // mixed, mixed, mixed))
    assert torch.equal((product.abs() > 1e-6).float(), expected)


def test_boft_scales_the_outputs() -> None:
    module = moved(BOFT(block_size=4))
    weight = EXAMPLES["linear"].host.weight.detach()
    lengths = module(weight).norm(dim=1)
    torch.testing.assert_close(lengths, module.scale.abs() * weight.norm(dim=1))


def test_hra_is_a_product_of_reflections() -> None:
    module = moved(HRA(r=4))
    expected = torch.eye(8)
    for u in module.vectors.detach():
        expected = expected @ (torch.eye(8) - 2 * torch.outer(u, u) / u.dot(u))
    torch.testing.assert_close(multiplier(module), expected)


def test_what_does_not_fit_is_refused_with_the_reason() -> None:
    site = EXAMPLES["linear"].site
    assert list(OFT(block_size=3).problems(site)) == [
        "block_size=3 does not divide the 8 inputs of a row: take a divisor"
    ]
    assert list(BOFT(block_size=4, factors=3).problems(site)) == [
        "block_size=4 and factors=3 mix 16 inputs, which does not divide the 8 inputs of a row: "
        "take less of either"
    ]
    assert list(BOFT(block_size=3, factors=2).problems(site))[1:] == [
        "block_size=3 is odd, and a butterfly pairs half blocks: take an even one"
    ]
    assert list(HRA(r=10).problems(site)) == ["r=10 exceeds the 8 inputs of a row: take r <= 8"]
    with pytest.raises(ValueError, match="multiple of 2"):
        HRA(r=3)


@pytest.mark.parametrize("shared", [False, True])
def test_oft_s_logits_and_gradients_are_peft_s(shared: bool) -> None:
    config = peft.OFTConfig(
        r=0,
        oft_block_size=8,
        block_share=shared,
        use_cayley_neumann=False,
        target_modules=["q_proj", "down_proj"],
    )
    spec = f"OFT block_size=8 shared={str(shared).lower()} on q,down"
    compare("llama", spec, config, {"skew": "oft_R.default.weight"})


def test_boft_s_logits_and_gradients_are_peft_s() -> None:
    config = peft.BOFTConfig(boft_block_size=8, target_modules=["q_proj", "down_proj"])
    tensors = {"skew": "boft_R.default", "scale": "boft_s.default"}
    compare("llama", "BOFT block_size=8 on q,down", config, tensors, whole, whole_gradient)


def whole(name: str, tensor: Tensor) -> Tensor:
    """peft keeps all b x b numbers of a block, and takes the skew-symmetric half of them."""
    if name == "scale":
        return tensor.unsqueeze(-1)
    above = torch.zeros(*tensor.shape[:-1], 8, 8)
    above[..., *torch.triu_indices(8, 8, 1)] = tensor
    return above - above.mT


def whole_gradient(name: str, tensor: Tensor) -> Tensor:
    """Each number above the diagonal then has half of the gradient, and the one below it the other half."""
    return whole(name, tensor) * (1.0 if name == "scale" else 0.5)


def test_hra_s_logits_and_gradients_are_peft_s() -> None:
    config = peft.HRAConfig(r=4, target_modules=["q_proj", "down_proj"])
    compare("llama", "HRA r=4 on q,down", config, {"vectors": "hra_u.default"}, lambda _, tensor: tensor.T)
