"""How everything is trained: AdamW, a short warm-up, then a rate that falls to zero."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

import peft_compiler as pc
from peft_compiler.lowering.compilation import compilation_of
from peft_compiler.methods import AdaLoRA

Batch = Mapping[str, Tensor]

HEAD_RATE = 4e-3
"""The learning rate of a trained head, whatever the rate of what is inserted."""
WARM_UP = 0.1
"""The share of the steps in which the rate rises."""
LARGEST_GRADIENT = 1.0
"""Gradients are scaled down to this norm."""
PENALTY = 0.1
"""How much AdaLoRA's penalty counts, as in its paper."""


def own_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Returns the loss that the model computes from the labels."""
    return model(**batch).loss


def train(
    tuned: nn.Module,
    batches: Sequence[Batch],
    rate: float,
    seed: int,
    epochs: int = 1,
    loss: Callable[[nn.Module, Batch], Tensor] = own_loss,
) -> None:
    """Trains what was inserted; the seed decides the order of the batches and the dropout."""
    torch.manual_seed(seed)
    tuned.train()
    steps = epochs * len(batches)
    warm_up = max(1, round(WARM_UP * steps))
    optimiser = torch.optim.AdamW(groups(tuned, rate), lr=rate, weight_decay=0.0)
    schedule = LambdaLR(
        optimiser, lambda step: min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up))
    )
    trainable = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    adaptive = any(isinstance(each.method, AdaLoRA) for each in compilation_of(tuned).plan.insertions)
    allocator = pc.RankAllocator(tuned, steps, warmup=steps // 5, cooldown=steps // 5) if adaptive else None
    shuffled = random.Random(seed)
    for _ in range(epochs):
        for batch in shuffled.sample(batches, len(batches)):
            value = loss(tuned, batch)
            if allocator is not None:
                value = value + PENALTY * allocator.penalty()
            value.backward()
            nn.utils.clip_grad_norm_(trainable, LARGEST_GRADIENT)
            optimiser.step()
            if allocator is not None:
                allocator.step()
            optimiser.zero_grad()
            schedule.step()


def groups(tuned: nn.Module, rate: float) -> list[dict[str, Any]]:
    """Returns the trainable parameters: those of a trained head at its own rate, all others at `rate`."""
    head = {
        id(parameter) for path in head_paths(tuned) for parameter in tuned.get_submodule(path).parameters()
    }
    trainable = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    found = [
        {"params": [each for each in trainable if id(each) not in head], "lr": rate},
        {"params": [each for each in trainable if id(each) in head], "lr": HEAD_RATE},
    ]
    return [group for group in found if group["params"]]


def head_paths(tuned: nn.Module) -> list[str]:
    """Returns where the trained copies of heads are."""
    plan = compilation_of(tuned).plan
    return [
        each.path
        for each in plan.insertions
        if each.site.role is pc.Role.HEAD and each.method.kind == "trained_copy"
    ]


def parameters(tuned: nn.Module) -> dict[str, int]:
    """Returns how many parameters are trained, and how many are kept, both without the head."""
    plan = compilation_of(tuned).plan
    head = set(head_paths(tuned))
    copied = sum(each.parameters for each in plan.insertions if each.path in head)
    return {"parameters": plan.trainable - copied, "kept": plan.settled.trainable - copied}
