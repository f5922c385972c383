"""What a step of training keeps for its backward pass, counted in one run on the meta device."""

import inspect
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from peft_compiler.analysis.meta_mode import MetaFloats, memory_of, tensors_in


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes that one step on one device keeps for its backward pass.

    Attributes:
        saved: What autograd saves, each piece of memory once.
        entering: What enters the blocks, which is all that a checkpoint at each of them keeps.
        outside: What is saved outside of the blocks, such as by the loss.
        largest_block: What the block that saves most saves; with checkpoints it is run again.
        returned: What the model returns and autograd does not save, such as logits.
    """

    saved: int
    entering: int
    outside: int
    largest_block: int
    returned: int

    @property
    def without_checkpoints(self) -> int:
        """Bytes where everything is kept."""
        return self.saved + self.returned

    @property
    def with_checkpoints(self) -> int:
        """Bytes with a checkpoint at each block: what is outside is free again when blocks run again."""
        return self.entering + self.returned + max(self.outside, self.largest_block)


class _KeepsNoScores(torch.autograd.Function):
    """Attention as kernels compute it that keep its operands, its result, and one number for each query."""

    @staticmethod
    @override
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out


class _Attention(TorchFunctionMode):
    @override
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            return _KeepsNoScores.apply(*args[:3])
        return func(*args, **(kwargs or {}))


class _Saved:
    """Counts the memory that autograd saves, by the block that runs; each piece once, and no weight."""

    def __init__(self, model: nn.Module, blocks: set[str]) -> None:
        held = (*model.parameters(), *model.buffers())
        self.seen = {memory_of(tensor) for tensor in held}
        self.by_block: Counter[str] = Counter()
        self.entering = 0
        self.running = ""
        self.alive: list[Tensor] = []
        self.handles = [
            handle
            for path, module in model.named_modules()
            if path in blocks
            for handle in (
                module.register_forward_pre_hook(self._enter(path)),
                module.register_forward_hook(self._leave),
            )
        ]

    def _enter(self, path: str) -> Any:
        def enter(_: nn.Module, args: tuple[Any, ...]) -> None:
            self.running = path
            self.entering += sum(a.nbytes for a in args if isinstance(a, Tensor) and a.is_floating_point())

        return enter

    def _leave(self, *_: Any) -> None:
        self.running = ""

    def pack(self, tensor: Tensor) -> Tensor:
        memory = memory_of(tensor)
        if memory not in self.seen:
            self.seen.add(memory)
            self.alive.append(tensor)  # or other tensors would get its memory's number
            self.by_block[self.running] += tensor.untyped_storage().nbytes()
        return tensor


@contextmanager
def _counted(model: nn.Module, blocks: set[str]) -> Generator[_Saved]:
    saved = _Saved(model, blocks)
    try:
        with saved_tensors_hooks(saved.pack, lambda tensor: tensor):
            yield saved
    finally:
        for handle in saved.handles:
            handle.remove()


def kept_by_step(tuned: nn.Module, blocks: set[str], batch: int, length: int) -> Kept:
    """Returns what a step of a model of tokens on the meta device keeps; `blocks` are paths."""
    ids = torch.ones(batch, length, dtype=torch.long)
    inputs: dict[str, Any] = {"input_ids": ids}
    parameters = inspect.signature(tuned.forward).parameters
    if "decoder_input_ids" in parameters:
        inputs["decoder_input_ids"] = ids
    if "use_cache" in parameters:
        inputs["use_cache"] = False
    if "labels" in parameters and "logits_to_keep" in parameters:
        inputs["labels"] = ids  # a language model: its loss is over the vocabulary
    tuned.train()
    with MetaFloats(), _Attention(), _counted(tuned, blocks) as saved:
        returned = tensors_in(tuned(**inputs))
    known = {memory_of(tensor): tensor.untyped_storage().nbytes() for tensor in returned}
    outside = saved.by_block.pop("", 0)
    inside = [*saved.by_block.values()]
    return Kept(
        saved=outside + sum(inside),
        entering=saved.entering,
        outside=outside,
        largest_block=max(inside, default=0),
        returned=sum(size for memory, size in known.items() if memory not in saved.seen),
    )
