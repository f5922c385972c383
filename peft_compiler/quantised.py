"""Quantised weights: which tensors hold codes, and which numbers the codes stand for.

No library's classes are known here. A tensor tells what it is made of, a module tells its widths as
`nn.Linear` does, and what it computes of the unit vectors are the columns of its matrix.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_CODES = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32})
"""Types of codes besides the floats of one byte. Positions and token ids are int64, masks are booleans."""
_VECTORS_AT_A_TIME = 1024


@dataclass(frozen=True, slots=True)
class Packed:
    """A matrix that its module keeps as codes, in a layout which only the module knows.

    Attributes:
        codes: Name of the parameter or buffer that holds the codes.
        width_in: Features in.
        width_out: Features out.
        bias: The bias, or None.
    """

    codes: str
    width_in: int
    width_out: int
    bias: Tensor | None


def parts_of(tensor: Tensor) -> Iterator[Tensor]:
    """Yields the plain tensors that `tensor` is made of: itself, unless it is a quantised or wrapped one."""
    if tensor.is_quantized:
        yield tensor.int_repr()
        if tensor.qscheme() in (torch.per_channel_affine, torch.per_channel_affine_float_qparams):
            yield from (tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points())
        else:
            yield from (torch.tensor(tensor.q_scale()), torch.tensor(tensor.q_zero_point()))
        return
    flatten: Callable[[], tuple[list[str], object]] | None = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield tensor
        return
    names, _ = flatten()
    for part in (getattr(tensor, name) for name in names):
        if isinstance(part, Tensor):  # a sharded tensor also names what it is spread over
            yield from parts_of(part)


def is_quantised(tensor: Tensor) -> bool:
    """Whether a parameter is codes, or made of them.

    >>> is_quantised(torch.zeros(2, dtype=torch.int8)), is_quantised(torch.zeros(2))
    (True, False)
    """
    return any(_holds_codes(part) for part in parts_of(tensor.detach()))


def packed_in(module: nn.Module) -> Packed | None:
    """Returns the matrix that a module keeps as codes and applies; None where it is not such a module.

    It holds codes itself, and tells its widths as `nn.Linear` does.
    """
    width_in, width_out = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if not (isinstance(width_in, int) and isinstance(width_out, int)):
        return None
    held = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    codes = [name for name, tensor in held.items() if tensor.dim() > 1 and _holds_codes(tensor)]
    if not codes:
        return None
    name = "weight" if "weight" in codes else codes[0]
    return Packed(name, width_in, width_out, held.get("bias"))


def unreadable_in(model: nn.Module) -> Iterator[str]:
    """Yields which modules keep a matrix as codes, in buffers alone, and do not tell its widths."""
    for path, module in model.named_modules():
        if [*module.children(), *module.parameters(recurse=False)] or packed_in(module):
            continue
        for name, tensor in module.named_buffers(recurse=False):
            if tensor.dim() > 1 and _holds_codes(tensor):
                yield (
                    f"{path or 'the model'}: {name!r} holds codes ({tensor.dtype}), and nothing tells of "
                    "what matrix: give the module in_features and out_features as nn.Linear has them, or "
                    "dequantise it"
                )
                break


def quantised_names(model: nn.Module) -> frozenset[str]:
    """Returns the names of the parameters and buffers of a model that are, or are made of, codes."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return frozenset(name for name, tensor in named if is_quantised(tensor))


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Returns the parameters and buffers of a model by name, and what is saved with them, such as scales."""
    # The state first: layers that have laid their codes out anew undo that when they are asked for it.
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    return {**state, **dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}


def dequantised(module: nn.Module, width_in: int, width_out: int) -> Tensor:
    """Returns the matrix (out, in) of a linear module in float32: what it makes of unit vectors."""
    tensors = [*module.parameters(), *module.buffers()]
    device = tensors[0].device
    if device.type == "meta":
        return torch.empty(width_out, width_in, device=device)
    # The type that it computes in: of a weight made of codes its own, else that of its scales or its bias.
    floats = (tensor.dtype for tensor in tensors if tensor.is_floating_point() and not _holds_codes(tensor))
    dtype = next(floats, torch.float32)
    training = module.training
    module.training = True  # in eval mode, some lay their codes out anew, in place
    with torch.no_grad():
        offset = module(torch.zeros(1, width_in, dtype=dtype, device=device)).float()
        columns = [
            module(vectors.to(dtype)).float() - offset
            for vectors in torch.eye(width_in, device=device).split(_VECTORS_AT_A_TIME)
        ]
    module.training = training
    return torch.cat(columns).mT.contiguous()


def _holds_codes(tensor: Tensor) -> bool:
    one_byte_float = tensor.dtype.is_floating_point and tensor.element_size() == 1
    return tensor.dtype in _CODES or one_byte_float
