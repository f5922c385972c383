"""Prefixes with few examples, started at random or at words, on the decoder.

Prefix-tuning (arXiv:2101.00190), section 7.4, finds that with few examples the start matters: at
random, results are low and vary much; the activations of real words do better, most so with
words of the task.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import DataCollatorForLanguageModeling

import peft_compiler as pc
from benchmarks.methods.claims import Claim
from benchmarks.methods.training import Batch, train
from peft_compiler.demo import texts
from peft_compiler.demo.abstracts import loss
from peft_compiler.demo.weights import decoder

EXPERIMENT = "start of a prefix"
AT_RANDOM, AT_WORDS = "random", "words of the task"
TRAIN, VALIDATION, TEST = 50, 15, 25
LENGTH = 32
"""Tokens of each abstract that are read."""
SIZE = 5
EPOCHS = 2
WORDS = "Abstract of a paper on computational linguistics:"
"""The start with words of the task: eight tokens."""


@dataclass(frozen=True)
class Writing:
    """A decoder, its tokenizer and batches of the starts of abstracts."""

    base: nn.Module
    tokenizer: Any
    train: Sequence[Batch]
    validation: Sequence[Batch]
    test: Sequence[Batch]


def abstracts() -> Writing:
    """Returns the task on SmolLM2-135M."""
    base, tokenizer = decoder()
    collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)

    def batches(split: str, number: int) -> list[Batch]:
        read = texts.abstracts(split)[:number]
        inputs = [dict(tokenizer(text, truncation=True, max_length=LENGTH)) for text in read]
        found = (dict(collate(inputs[start : start + SIZE])) for start in range(0, number, SIZE))
        return [{**batch, "use_cache": False} for batch in found]

    return Writing(
        base, tokenizer, batches("train", TRAIN), batches("val", VALIDATION), batches("test", TEST)
    )


def claim(task: Writing) -> Claim:
    """Returns the arms: eight positions each, given by an MLP while they are trained."""

    def run(sentence: str, rate: float, seed: int) -> dict[str, float]:
        tuned = pc.compile(task.base, sentence, task.test[0], seed=seed, tokenizer=task.tokenizer)
        untrained = loss(tuned, task.test)
        train(tuned, task.train, rate, seed, epochs=EPOCHS)
        return {
            "untrained": round(untrained, 4),
            "validation": round(loss(tuned, task.validation), 4),
            "test": round(loss(tuned, task.test), 4),
        }

    length = len(task.tokenizer.encode(WORDS, add_special_tokens=False))
    return Claim(
        EXPERIMENT,
        {AT_RANDOM: f"prefix length={length}", AT_WORDS: f'prefix text="{WORDS}"'},
        rates=(1e-3, 4e-3),
        best=min,
        alone=lambda: round(loss(task.base, task.test), 4),
        run=run,
    )
