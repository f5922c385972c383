"""`digest` tells any two tensors apart, and nothing else."""

import pytest
import torch
from torch import Tensor

from peft_compiler.digests import digest


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.int64, torch.bool],
)
def test_one_changed_element_is_seen(dtype: torch.dtype) -> None:
    tensor = torch.zeros(3, 5, dtype=dtype)
    before = digest(tensor)
    assert digest(tensor.clone()) == before
    tensor[2, 4] = 1
    assert digest(tensor) != before


def test_the_shape_and_dtype_count() -> None:
    zeros = [
        torch.zeros(6),
        torch.zeros(2, 3),
        torch.zeros(6, dtype=torch.int32),
        torch.zeros(()),
        torch.zeros(0),
    ]
    assert len({digest(tensor) for tensor in zeros}) == len(zeros)


def test_strides_and_gradients_do_not_count() -> None:
    tensor = torch.arange(12.0).reshape(3, 4)
    assert digest(tensor.t()) == digest(tensor.t().contiguous())
    assert digest(tensor.clone().requires_grad_()) == digest(tensor)


def test_bits_count_not_values() -> None:
    assert digest(torch.tensor([float("nan")])) == digest(torch.tensor([float("nan")]))
    assert digest(torch.tensor([0.0])) != digest(torch.tensor([-0.0]))
    assert digest(torch.tensor([1 + 2j]).conj()) == digest(torch.tensor([1 - 2j]))


def test_chunks_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.arange(10)
    whole = digest(tensor)
    monkeypatch.setattr("peft_compiler.digests.CHUNK", 3)
    assert digest(tensor) == whole


def test_a_wrapped_tensor_is_what_it_is_made_of() -> None:
    def wrapped(codes: list[int], scale: float) -> Tensor:
        class Codes(Tensor):
            def __tensor_flatten__(self) -> tuple[list[str], None]:
                return ["codes", "scale"], None

        tensor = torch.zeros(2).as_subclass(Codes)
        tensor.codes, tensor.scale = torch.tensor(codes), torch.tensor(scale)
        tensor.detach = lambda: tensor
        return tensor

    assert digest(wrapped([1, 2], 0.5)) == digest(wrapped([1, 2], 0.5))
    assert digest(wrapped([1, 2], 0.5)) != digest(wrapped([1, 2], 0.25))
    assert digest(wrapped([1, 2], 0.5)) != digest(wrapped([1, 3], 0.5))


def test_a_meta_tensor_has_no_digest() -> None:
    with pytest.raises(
        ValueError, match=r"a tensor of shape \(2, 3\) on the meta device has no values to digest"
    ):
        digest(torch.empty(2, 3, device="meta"))
