"""Running a model without its weights: floats have only a shape, integers and booleans are real.

Masks, positions and almost all control flow are integers, so they stay exact. The few
reads of a float, or of what was computed from one, get a made-up answer that is counted.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from peft_compiler.errors import CaptureError

aten = torch.ops.aten

_ARANGES = (aten.arange.default, aten.arange.start, aten.arange.start_step)
# Beyond this many elements, an op that has no meta version is not run on zeros either.
_LARGEST_STAND_IN = 50_000_000
_MOST_INDICES = 4096

READS = frozenset(
    {"tolist", "numpy", "item", "__bool__", "__int__", "__float__", "__index__", "__contains__"}
)
"""Ops, by Python's own name, that turn a tensor into something else than a tensor."""


def is_real_type(dtype: torch.dtype) -> bool:
    """Whether tensors of this type are kept real: neither floating point nor complex."""
    return not (dtype.is_floating_point or dtype.is_complex)


def made_up_answer(read: str, tensor: Tensor, computed_by: str | None) -> Any:
    """Returns what a `read` of a tensor without data may plausibly give.

    Checks for NaN or infinity are passed: all is true, anything else is false.
    """
    if read in ("__bool__", "__contains__"):
        return read == "__bool__" and computed_by in ("all", "isfinite", "allclose", "_is_all_true")
    if read == "tolist":
        return torch.ones(tensor.shape, dtype=tensor.dtype).tolist()
    if read == "numpy":
        return torch.zeros(tensor.shape, dtype=tensor.dtype).numpy()
    if read == "item" and tensor.dtype == torch.bool:
        return True
    return 1.0 if read == "__float__" or (read == "item" and tensor.is_floating_point()) else 1


def tensors_in(value: Any) -> list[Tensor]:
    """Returns the tensors in a value, those in lists, tuples, slices and dicts included, in order."""
    found: list[Tensor] = []
    _gather(value, found)
    return found


def memory_of(tensor: Tensor) -> int:
    """Returns what is equal for tensors that share their memory."""
    try:
        return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]
    except NotImplementedError:  # sparse tensors, and those within vmap, have none that others could share
        return id(tensor)


def _gather(value: Any, found: list[Tensor]) -> None:
    # Called for every op, often: this is several times faster than torch's walk through any object.
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, (tuple, list)):
        for part in value:
            _gather(part, found)
    elif isinstance(value, dict):
        for part in value.values():
            _gather(part, found)
    elif isinstance(value, slice):
        _gather((value.start, value.stop, value.step), found)


class MetaFloats(TorchDispatchMode):
    """Keeps floats on the meta device and everything else on the CPU.

    Attributes:
        faked: How many values were made up.
    """

    def __init__(self) -> None:
        super().__init__()
        self.faked = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        tensors = tensors_in((args, kwargs))
        if any(tensor.is_meta for tensor in tensors):
            return self._run_on_meta(func, args, kwargs, tensors)
        device = kwargs.get("device")
        if (
            device is not None
            and torch.device(device).type == "meta"
            and _makes_integers(func, args, kwargs, tensors)
        ):
            kwargs["device"] = torch.device("cpu")
        return func(*args, **kwargs)

    def _run_on_meta(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]
    ) -> Any:
        if func in (aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default):
            self.faked += 1
            return _data_dependent(func, args[0])
        originals: dict[int, Tensor] = {}

        def to_meta(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or leaf.is_meta:
                return leaf
            moved = leaf.to("meta")
            if leaf.dim():
                originals[id(moved)] = leaf
            return moved

        if not all(tensor.is_meta for tensor in tensors):
            args, kwargs = tree_map(to_meta, (args, kwargs))
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("meta")
        try:
            out = func(*args, **kwargs)
        except (NotImplementedError, RuntimeError) as error:
            if not _lacks_meta(error):
                raise
            self.faked += 1
            out = _run_on_zeros(func, args, kwargs, error)

        # An op in place returns the tensor that it was given, and the caller's is the real one.
        def to_caller(leaf: Any) -> Any:
            return originals.get(id(leaf), leaf)

        return tree_map(to_caller, out) if originals else out


def _makes_integers(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]) -> bool:
    dtype = kwargs.get("dtype")
    if tensors:
        return is_real_type(dtype or tensors[0].dtype)
    if dtype is None:
        return func in _ARANGES and all(isinstance(argument, int) for argument in args)
    return is_real_type(dtype)


def _data_dependent(func: Any, tensor: Tensor) -> Any:
    if func is aten.equal.default:
        return False
    if func is aten.nonzero.default:
        rows = min(max(tensor.numel(), 1), _MOST_INDICES)
        return torch.zeros(rows, tensor.dim(), dtype=torch.long)
    return made_up_answer("item", tensor, None)


def _lacks_meta(error: Exception) -> bool:
    return isinstance(error, NotImplementedError) or any(
        word in str(error) for word in ("meta", "Meta", "data-dependent")
    )


def _run_on_zeros(func: Callable[..., Any], args: Any, kwargs: Any, cause: Exception) -> Any:
    if sum(tensor.numel() for tensor in tensors_in((args, kwargs))) > _LARGEST_STAND_IN:
        raise CaptureError(
            f"{func} has no version without data, and its inputs are too large to make up"
        ) from cause

    def to_zeros(leaf: Any) -> Any:
        if isinstance(leaf, torch.device):
            return torch.device("cpu")
        return torch.zeros(leaf.shape, dtype=leaf.dtype) if isinstance(leaf, Tensor) else leaf

    def to_meta(leaf: Any) -> Any:
        return leaf.to("meta") if isinstance(leaf, Tensor) and not is_real_type(leaf.dtype) else leaf

    zero_args, zero_kwargs = tree_map(to_zeros, (args, kwargs))
    return tree_map(to_meta, func(*zero_args, **zero_kwargs))
