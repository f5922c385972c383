"""The encoder's task: whether people find that a sentence praises a movie."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import DataCollatorWithPadding

from benchmarks.methods.training import Batch
from peft_compiler.demo.texts import Example, rated
from peft_compiler.demo.weights import encoder

SPLIT = 0
"""The seed of the split, which is the same for all runs."""
TRAIN, VALIDATION, TEST = 640, 300, 700
LENGTH = 24
"""Sentences with more tokens are left out: the runs are many."""
SIZE = 8
"""Sentences in a batch of training."""
FREQUENT = 20
"""How many of the most frequent tokens have trained embeddings in the row of trainable tokens."""


@dataclass(frozen=True)
class Sentences:
    """A model and its batches.

    Attributes:
        load: Returns a fresh copy of the base; the seed decides the head.
        train: What is trained on.
        validation: What learning rates are chosen by.
        test: What is reported.
        others: What other adapters of a fusion are trained on, by the adapter's name.
    """

    load: Callable[[int], nn.Module]
    train: Sequence[Batch]
    validation: Sequence[Batch]
    test: Sequence[Batch]
    others: Mapping[str, Sequence[Batch]]

    @property
    def frequent(self) -> list[int]:
        """The ids that occur most often in what is trained on, but for padding."""
        counts = Counter(
            token
            for batch in self.train
            for token, seen in zip(
                batch["input_ids"].flatten().tolist(), batch["attention_mask"].flatten().tolist(), strict=True
            )
            if seen
        )
        return sorted(token for token, _ in counts.most_common(FREQUENT))


def movies() -> Sentences:
    """Returns the task on MiniLM-L6."""
    _, tokenizer = encoder()
    collate = DataCollatorWithPadding(tokenizer)

    def batches(examples: list[Example], size: int) -> list[Batch]:
        # Token types are left out: they are all zero, which the model assumes, and a table of them
        # that is looked up by an input would be one more embedding.
        encoded: list[dict[str, Any]] = [
            {**tokenizer(each.text, return_token_type_ids=False), "labels": each.label} for each in examples
        ]
        encoded.sort(key=lambda each: len(each["input_ids"]))  # less padding, less work
        return [dict(collate(encoded[start : start + size])) for start in range(0, len(encoded), size)]

    examples = short(tokenizer, "movieReviewSnippets")
    others = {"products": "amazonReviewSnippets", "tweets": "tweets"}
    return Sentences(
        load=lambda seed: encoder(seed)[0],
        train=batches(examples[:TRAIN], SIZE),
        validation=batches(examples[TRAIN:][:VALIDATION], 50),
        test=batches(examples[TRAIN + VALIDATION :][:TEST], 50),
        others={name: batches(short(tokenizer, source)[:TRAIN], SIZE) for name, source in others.items()},
    )


def short(tokenizer: Any, source: str) -> list[Example]:
    """Returns the short texts of a source, shuffled."""
    return [each for each in rated(source, SPLIT) if len(tokenizer(each.text)["input_ids"]) <= LENGTH]


@torch.no_grad()
def accuracy(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Returns the share of sentences whose label the model gives the higher logit."""
    model.eval()
    hits = [model(**batch).logits.argmax(-1) == batch["labels"] for batch in batches]
    return round(torch.cat(hits).double().mean().item(), 4)
