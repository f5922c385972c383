"""`Task`: a real model, real text and a score, as plain data for `run`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

Batch = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Task:
    """What one demo learns, and how well that went.

    Attributes:
        title: What is learned from what, in a line.
        spec: The sentence that is compiled.
        load: Returns a fresh copy of the same base model each time.
        examples: What is trained on: unpadded model inputs.
        collate: Pads some of them to one batch.
        batch: One batch of texts that were not trained on.
        score: Returns how good a model is on texts that were not trained on.
        measure: What the score is, and which way is better.
        references: Returns what the score is compared with.
        training: Settings of the Trainer that differ from its defaults.
    """

    title: str
    spec: str
    load: Callable[[], nn.Module]
    examples: Sequence[dict[str, Any]]
    collate: Callable[[list[dict[str, Any]]], Batch]
    batch: Batch
    score: Callable[[nn.Module], float]
    measure: str
    references: Callable[[], Mapping[str, float]]
    training: Mapping[str, Any] = field(default_factory=dict[str, Any])
