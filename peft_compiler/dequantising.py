"""Dequantising: a model that keeps weights as codes becomes one of plain linear layers."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from peft_compiler.quantised import dequantised, is_quantised, packed_in


def dequantise_linears(model: nn.Module) -> None:
    """Puts an `nn.Linear` in the place of each linear layer of `model` that keeps codes, in place.

    Their numbers have the dtype of the model's own plain parameters. A transformers model is told
    that it is quantised no more, so that it is saved and loaded as what it now is.
    """
    plain = (p.dtype for p in model.parameters() if p.is_floating_point() and not is_quantised(p))
    dtype = next(plain, torch.float32)
    for path, module in list(model.named_modules()):
        widths = _widths_of(module)
        if widths is not None:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, _plain(module, *widths, dtype))
    _tell(model)


def _widths_of(module: nn.Module) -> tuple[int, int] | None:
    """Returns the widths of a linear layer whose weight is codes or made of them; None for anything else."""
    if packed := packed_in(module):
        return packed.width_in, packed.width_out
    if isinstance(module, nn.Linear) and is_quantised(module.weight):
        return module.in_features, module.out_features
    return None


def _plain(module: nn.Module, width_in: int, width_out: int, dtype: torch.dtype) -> nn.Linear:
    weight = dequantised(module, width_in, width_out)
    bias = getattr(module, "bias", None)
    plain = nn.Linear(width_in, width_out, bias=isinstance(bias, Tensor), device="meta")
    plain.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    if isinstance(bias, Tensor):
        plain.bias = nn.Parameter(bias.detach().to(dtype, copy=True), requires_grad=False)
    return plain.train(module.training)


def _tell(model: nn.Module) -> None:
    """Takes from a transformers model what says that it is quantised, where it says so."""
    config = cast(Any, getattr(model, "config", None))
    if config is not None and hasattr(config, "quantization_config"):
        del config.quantization_config
    told = vars(model)
    for name in ("hf_quantizer", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        told.pop(name, None)
    if "is_quantized" in told:
        told["is_quantized"] = False
        for module in model.modules():
            vars(getattr(module, "config", None) or module).pop("_is_quantized", None)
