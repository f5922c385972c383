"""`RankAllocator`: AdaLoRA's budget of ranks, spent while a model is trained."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from peft_compiler.errors import PeftCompilerError
from peft_compiler.lowering.compilation import compilation_of
from peft_compiler.methods.adalora import Triplets


def ranks_of(tuned: nn.Module) -> Mapping[str, int]:
    """Returns how many triplets each AdaLoRA of a compiled model still uses, by its path.

    Raises:
        PeftCompilerError: If `tuned` is not a compiled model.
    """
    return {path: int(triplets.kept.sum()) for path, triplets in _triplets_of(tuned).items()}


@dataclass(slots=True)
class Importance:
    """The smoothed importance of one tensor's entries and how it varies (section 3.2)."""

    mean: Tensor
    spread: Tensor

    def observe(self, entries: Tensor, gradient: Tensor, beta_1: float, beta_2: float) -> None:
        """Takes one step into account, in place."""
        sensitivity = (entries * gradient).abs()
        self.mean.lerp_(sensitivity, 1 - beta_1)
        self.spread.lerp_((sensitivity - self.mean).abs(), 1 - beta_2)

    @property
    def score(self) -> Tensor:
        """How much each entry matters."""
        return self.mean * self.spread


class RankAllocator:
    """Cuts the ranks of all AdaLoRA of a compiled model from r to target_r on average.

    Zhang et al. 2023, https://arxiv.org/abs/2303.10512, section 3.2 and algorithm 1. The budget
    is that of the beginning for `warmup` steps, then falls along a cubic curve (section 3.3 and
    appendix A), and in the last `cooldown` steps stays, as do the triplets that are left.

    In a training loop, after the backward pass and before the gradients are cleared:

        loss = criterion(tuned(...)) + 0.1 * allocator.penalty()
        loss.backward()
        optimiser.step()
        allocator.step()
        optimiser.zero_grad()

    Its `state_dict` goes with a checkpoint of the model, as accelerate keeps it once it is registered.
    A `transformers` trainer calls `on_optimizer_step` of its callbacks at the same point.
    """

    def __init__(
        self,
        tuned: nn.Module,
        steps: int,
        warmup: int = 0,
        cooldown: int = 0,
        interval: int = 1,
        beta_1: float = 0.85,
        beta_2: float = 0.85,
    ) -> None:
        """Takes the AdaLoRA of a compiled model.

        Args:
            tuned: The compiled model.
            steps: Optimiser steps of the whole training (T).
            warmup: Steps before the first cut (t_i).
            cooldown: Steps after the last one (t_f).
            interval: Steps from cut to cut (delta T).
            beta_1: How slowly the importance of an entry is smoothed.
            beta_2: How slowly its variation is.

        Raises:
            PeftCompilerError: If the model has no AdaLoRA, or the settings leave no time for cuts.
        """
        found = _triplets_of(tuned)
        self._paths, self._triplets = tuple(found), tuple(found.values())
        if not self._triplets:
            raise PeftCompilerError(
                f"this {type(tuned).__name__} has no AdaLoRA, whose ranks could be cut: compile it with one"
            )
        problems = [*_problems(steps, warmup, cooldown, interval, beta_1, beta_2)]
        if problems:
            raise PeftCompilerError("ranks cannot be allocated", problems)
        self.steps, self.warmup, self.cooldown, self.interval = steps, warmup, cooldown, interval
        self.beta_1, self.beta_2 = beta_1, beta_2
        self.done = 0
        self._importance = [
            [Importance(torch.zeros_like(p), torch.zeros_like(p)) for p in _parameters(triplets)]
            for triplets in self._triplets
        ]

    def budget(self, step: int) -> int:
        """Returns how many triplets are in use after a step, counted from 1, in all sites together."""
        first = sum(triplets.kept.numel() for triplets in self._triplets)
        last = sum(triplets.kept[..., 0].numel() * triplets.target for triplets in self._triplets)
        time = (step - self.warmup) / (self.steps - self.warmup - self.cooldown)
        return int(last + (first - last) * (1 - min(max(time, 0), 1)) ** 3)

    def penalty(self) -> Tensor:
        """Returns what keeps P and Q orthogonal; the paper adds 0.1 to 0.5 times as much to the loss."""
        home = self._triplets[0].left.device
        return torch.stack([triplets.penalty().to(home) for triplets in self._triplets]).sum()

    def step(self) -> None:
        """Takes one optimiser step into account, and cuts ranks when it is time.

        Raises:
            PeftCompilerError: If a gradient is missing, because it was cleared already.
        """
        self.done += 1
        cutting = self.steps - self.cooldown
        if self.done > cutting:
            for triplets in self._triplets:
                triplets.keep(triplets.kept)  # an optimiser with momentum moves zeros
            return
        self._observe()
        if self.done > self.warmup and (self.done % self.interval == 0 or self.done == cutting):
            self._cut(self.budget(self.done))

    def state_dict(self) -> dict[str, Any]:
        """Returns what a run has to keep beside the model's checkpoint to be taken up again."""
        importance = {
            path: [[each.mean, each.spread] for each in of_site]
            for path, of_site in zip(self._paths, self._importance, strict=True)
        }
        return {"schedule": self._schedule(), "done": self.done, "importance": importance}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where the allocator stood that gave `state`.

        Raises:
            PeftCompilerError: If it has another schedule or other sites; nothing is changed.
        """
        theirs, ours = state["schedule"], self._schedule()
        problems = [
            f"{name}={theirs[name]} there, {ours[name]} here" for name in ours if ours[name] != theirs[name]
        ]
        if [*state["importance"]] != [*self._paths]:
            problems.append("it is of other AdaLoRAs than those of this model")
        if problems:
            raise PeftCompilerError("the state does not belong to this allocator", problems)
        self.done = state["done"]
        for path, of_site in zip(self._paths, self._importance, strict=True):
            for each, (mean, spread) in zip(of_site, state["importance"][path], strict=True):
                each.mean.copy_(mean)
                each.spread.copy_(spread)

    def _schedule(self) -> dict[str, float]:
        names = ("steps", "warmup", "cooldown", "interval", "beta_1", "beta_2")
        return {name: getattr(self, name) for name in names}

    def _observe(self) -> None:
        for triplets, importance in zip(self._triplets, self._importance, strict=True):
            for parameter, of_entries in zip(_parameters(triplets), importance, strict=True):
                if parameter.grad is None:
                    raise PeftCompilerError(
                        "an AdaLoRA has no gradient: call step() after backward() and before zero_grad()"
                    )
                of_entries.observe(parameter.detach(), parameter.grad, self.beta_1, self.beta_2)

    def _cut(self, budget: int) -> None:
        """Keeps the `budget` triplets that matter most, wherever they are (section 3.2)."""
        scores = [
            (values.score + left.score.mean(-2) + right.score.mean(-1)).float().cpu()
            for left, values, right in self._importance
        ]
        flat = torch.cat([score.flatten() for score in scores])
        kept = torch.zeros_like(flat, dtype=torch.bool)
        kept[flat.topk(budget).indices] = True
        parts = kept.split([score.numel() for score in scores])
        for triplets, part in zip(self._triplets, parts, strict=True):
            triplets.keep(part.view(triplets.kept.shape).to(triplets.kept.device))


def _triplets_of(tuned: nn.Module) -> dict[str, Triplets]:
    """Returns every AdaLoRA of a compiled model by the path of its insertion."""
    return {
        insertion.path: module
        for insertion in compilation_of(tuned).plan.insertions
        for module in tuned.get_submodule(insertion.path).modules()
        if isinstance(module, Triplets)
    }


def _parameters(triplets: Triplets) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
    return triplets.left, triplets.values, triplets.right


def _problems(
    steps: int, warmup: int, cooldown: int, interval: int, beta_1: float, beta_2: float
) -> Iterator[str]:
    """Yields each reason why a schedule is none."""
    if min(warmup, cooldown) < 0:
        yield f"warmup={warmup} and cooldown={cooldown} given, expected no negative number of steps"
    if interval < 1:
        yield f"interval={interval} given, expected at least one step from cut to cut"
    if warmup + cooldown >= steps:
        yield f"warmup={warmup} and cooldown={cooldown} leave none of steps={steps} for cuts: take less"
    for name, beta in (("beta_1", beta_1), ("beta_2", beta_2)):
        if not 0 < beta < 1:
            yield f"{name}={beta} given, expected a number between 0 and 1"
