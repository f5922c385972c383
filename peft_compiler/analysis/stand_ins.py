"""What takes the place, while a model is captured, of a module that keeps its matrix as codes."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from peft_compiler.quantised import Packed


class _StandIn(nn.Module):
    """Applies a matrix of the right shape, on the meta device, under the name that the codes have."""

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self.codes = packed.codes
        weight = torch.empty(packed.width_out, packed.width_in, device="meta")
        self.register_parameter(packed.codes, nn.Parameter(weight, requires_grad=False))
        bias = None if packed.bias is None else torch.empty(packed.width_out, device="meta")
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @override
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        weight, bias = self.get_parameter(self.codes), self.bias
        return functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def stand_in(module: nn.Module, packed: Packed) -> nn.Module:
    """Returns a module to capture in place of one that keeps codes; its class has the same name.

    Kernels for codes have no form without data, and the layout of the codes is their own affair.
    """
    return type(type(module).__name__, (_StandIn,), {})(packed)
