"""`parameter_groups`: which inserted parameters an optimiser trains at which rate."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from peft_compiler.errors import PeftCompilerError
from peft_compiler.lowering.compilation import compilation_of


def parameter_groups(
    tuned: nn.Module | Sequence[nn.Module], lr: float, ratio: float = 16.0
) -> list[dict[str, Any]]:
    """Returns the trainable parameters of `tuned` in groups for an optimiser, as LoRA+ has them.

    Hayou et al. 2024, "LoRA+: Efficient Low Rank Adaptation of Large Models",
    https://arxiv.org/abs/2402.12354, section 4: the B of each low-rank update, of shape
    (out, r), is trained at `ratio` times the rate of its A. Everything else is trained at `lr`.
    A group without parameters is left out. Of parameters that several models share, each is
    there once.

    Args:
        tuned: A compiled model, or several that are trained together.
        lr: The rate of everything but B.
        ratio: What the rate of B is multiplied by (lambda in section 5.3, which finds about 2**4
            good for RoBERTa, and less for Llama).

    Raises:
        PeftCompilerError: If a model is not compiled, none is given, or a number is not positive.
    """
    models = [tuned] if isinstance(tuned, nn.Module) else [*tuned]
    if not models:
        raise PeftCompilerError("no model was given, expected at least one")
    inserted = [
        model.get_submodule(insertion.path)
        for model in models
        for insertion in compilation_of(model).plan.insertions
    ]
    wrong = [f"{name}={value}" for name, value in (("lr", lr), ("ratio", ratio)) if not value > 0]
    if wrong:
        raise PeftCompilerError(f"{' and '.join(wrong)} given, expected positive numbers")
    faster = {
        id(module.get_parameter(name))
        for each in inserted
        for module in each.modules()
        for name in getattr(module, "faster", ())
        if name in module._parameters  # pyright: ignore[reportPrivateUsage]
    }
    every = dict.fromkeys(parameter for model in models for parameter in model.parameters())
    trainable = [parameter for parameter in every if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in trainable if id(parameter) not in faster], "lr": lr},
        {"params": [parameter for parameter in trainable if id(parameter) in faster], "lr": lr * ratio},
    ]
    return [group for group in groups if group["params"]]
