"""The chain of instructions is the same in every mode, and tells calls apart."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from peft_compiler.frames import OPENED, call_chain, op_name


class Chains(TorchFunctionMode):
    """Notes the chain of every op."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[tuple[str, int], ...]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in OPENED:
            with self:
                return OPENED[func](*args, **(kwargs or {}))
        # This frame is no machinery of the package, so the chain starts at its caller.
        self.seen.append((op_name(func), call_chain(inspect.currentframe().f_back)))
        return func(*args, **(kwargs or {}))


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return self.outer(x) + self.outer(x)

    def outer(self, x: Tensor) -> Tensor:
        return nn.functional.softmax(x, -1) * 2


def chains(module: nn.Module, *inputs: Tensor) -> list[tuple[str, tuple[tuple[str, int], ...]]]:
    with Chains() as mode:
        module(*inputs)
    return mode.seen


def test_a_chain_goes_from_forward_to_the_op_outermost_first() -> None:
    seen = chains(Twice(), torch.ones(2))
    functions = [(op, [name for name, _ in chain]) for op, chain in seen]
    softmax = ("softmax", ["Twice.forward", "Twice.outer"])
    assert functions == [
        softmax, ("mul", ["Twice.forward", "Twice.outer"]),
        softmax, ("mul", ["Twice.forward", "Twice.outer"]),
        ("add", ["Twice.forward"]),
    ]  # fmt: skip


def test_two_calls_of_one_function_have_different_chains() -> None:
    seen = [chain for op, chain in chains(Twice(), torch.ones(2)) if op == "softmax"]
    assert seen[0] != seen[1]


def test_a_chain_is_the_same_with_hooks_and_in_train_mode() -> None:
    plain, hooked = Twice().eval(), Twice().train()
    hooked.register_forward_hook(lambda *_: None)
    assert chains(plain, torch.ones(2)) == chains(hooked, torch.ones(3, 4))


def test_attention_in_one_op_is_opened() -> None:
    module = nn.MultiheadAttention(8, 2, batch_first=True)
    seen = dict(chains(module, *[torch.ones(1, 3, 8)] * 3))
    assert {"linear", "softmax"} <= seen.keys()
    functions = [name for name, _ in seen["linear"]]
    assert (functions[0], functions[-1]) == ("MultiheadAttention.forward", "multi_head_attention_forward")


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (Tensor.__matmul__, "matmul"),
        (Tensor.add_, "add_"),
        (nn.functional.linear, "linear"),
        (Tensor.T.__get__, "T"),  # pyright: ignore
    ],
)
def test_names_of_ops(function: Any, name: str) -> None:
    assert op_name(function) == name
