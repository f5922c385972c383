"""`parameter_groups`: which inserted parameters an optimiser trains at which rate."""

from typing import Any

from torch import nn

from peft_compiler.errors import PeftCompilerError
from peft_compiler.lowering.compilation import compilation_of


def parameter_groups(tuned: nn.Module, lr: float, ratio: float = 16.0) -> list[dict[str, Any]]:
    """Returns the trainable parameters of `tuned` in groups for an optimiser, as LoRA+ has them.

    Hayou et al. 2024, "LoRA+: Efficient Low Rank Adaptation of Large Models",
    https://arxiv.org/abs/2402.12354, section 4: the B of each low-rank update, of shape
    (out, r), is trained at `ratio` times the rate of its A. Everything else is trained at `lr`.
    A group without parameters is left out.

    Args:
        tuned: A compiled model.
        lr: The rate of everything but B.
        ratio: What the rate of B is multiplied by (lambda in the paper, which proposes 2**4).

    Raises:
        PeftCompilerError: If `tuned` is not a compiled model, or a number is not positive.
    """
    insertions = compilation_of(tuned).plan.insertions
    wrong = [f"{name}={value}" for name, value in (("lr", lr), ("ratio", ratio)) if not value > 0]
    if wrong:
        raise PeftCompilerError(f"{' and '.join(wrong)} given, expected positive numbers")
    faster = {
        id(module.get_parameter(name))
        for insertion in insertions
        for module in tuned.get_submodule(insertion.path).modules()
        for name in getattr(module, "faster", ())
        if name in module._parameters  # pyright: ignore[reportPrivateUsage]
    }
    trainable = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in trainable if id(parameter) not in faster], "lr": lr},
        {"params": [parameter for parameter in trainable if id(parameter) in faster], "lr": lr * ratio},
    ]
    return [group for group in groups if group["params"]]
