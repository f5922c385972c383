"""Prompts started at random or at the names of the classes, on the frozen decoder.

Prompt tuning (arXiv:2104.08691), section 3.2 and figure 3b: at small model sizes a start at the
class labels is best, one at random worst; the differences go away with the largest models.
Nothing but the prompt is trained: the decoder itself names the class with its next word.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import peft_compiler as pc
from benchmarks.methods.claims import Claim
from benchmarks.methods.sentences import short
from benchmarks.methods.training import Batch, train
from peft_compiler.demo.weights import decoder, encoder

EXPERIMENT = "start of a prompt"
AT_RANDOM, AT_LABELS = "random", "class labels"
TRAIN, VALIDATION, TEST = 96, 48, 128
SIZE = 8
SEEDS = 5
"""At least as many seeds as the ensemble has prompts."""
PROMPT = 8
"""Positions of the prompt; the two labels are the first two, entries of the vocabulary the others."""
QUESTION = "\nSentiment:"
ANSWERS = (" negative", " positive")


@dataclass(frozen=True)
class Naming:
    """A decoder, its tokenizer, batches with the token that answers, and the two answers."""

    base: nn.Module
    tokenizer: Any
    answers: Sequence[int]
    train: Sequence[Batch]
    validation: Sequence[Batch]
    test: Sequence[Batch]


def reviews() -> Naming:
    """Returns the task on SmolLM2-135M, with the short movie sentences that the encoder is given."""
    base, tokenizer = decoder()
    answers = [token for word in ANSWERS for token in tokenizer.encode(word)]
    examples = short(encoder()[1], "movieReviewSnippets")

    def batches(start: int, number: int) -> list[Batch]:
        read = [
            (tokenizer.encode(example.text + QUESTION), answers[example.label])
            for example in examples[start:][:number]
        ]
        read.sort(key=lambda each: len(each[0]))  # less padding, less work
        return [
            padded(read[first : first + SIZE], tokenizer.pad_token_id) for first in range(0, number, SIZE)
        ]

    return Naming(
        base,
        tokenizer,
        answers,
        batches(0, TRAIN),
        batches(TRAIN, VALIDATION),
        batches(TRAIN + VALIDATION, TEST),
    )


def padded(examples: Sequence[tuple[list[int], int]], padding: int) -> Batch:
    """Returns a batch padded on the left, so that the answer comes after the last position."""
    length = max(len(ids) for ids, _ in examples)
    missing = [length - len(ids) for ids, _ in examples]
    return {
        "input_ids": torch.tensor(
            [[padding] * n + ids for n, (ids, _) in zip(missing, examples, strict=True)]
        ),
        "attention_mask": torch.tensor([[0] * n + [1] * (length - n) for n in missing]),
        "answer": torch.tensor([answer for _, answer in examples]),
    }


def next_word(model: nn.Module, batch: Batch) -> Tensor:
    """Returns the logits (batch, vocabulary) of the word that comes next."""
    inputs = {name: value for name, value in batch.items() if name != "answer"}
    return model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]


def answer_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Returns how unlikely the model finds the answer among all words."""
    return cross_entropy(next_word(model, batch), batch["answer"])


@torch.no_grad()
def margins(model: nn.Module, batches: Iterable[Batch], answers: Sequence[int]) -> list[float]:
    """Returns by how much the model prefers the right answer to the other one, for each sentence."""
    model.eval()
    found: list[Tensor] = []
    for batch in batches:
        logits = next_word(model, batch)
        first, second = (logits[:, answer] for answer in answers)
        found.append(torch.where(batch["answer"] == answers[0], first - second, second - first))
    return [round(margin, 3) for margin in torch.cat(found).tolist()]


def right(margins: Sequence[float]) -> float:
    """Returns the share of sentences for which the right answer is preferred."""
    return round(sum(margin > 0 for margin in margins) / len(margins), 4)


def claim(task: Naming) -> Claim:
    """Returns the arms."""
    example = {name: value for name, value in task.test[0].items() if name != "answer"}

    def run(sentence: str, rate: float, seed: int) -> dict[str, Any]:
        tuned = pc.compile(task.base, sentence, example, seed=seed, tokenizer=task.tokenizer)
        train(tuned, task.train, rate, seed, loss=answer_loss)
        found = margins(tuned, task.test, task.answers)
        validation = margins(tuned, task.validation, task.answers)
        return {"validation": right(validation), "test": right(found), "margins": found}

    labels = ", ".join(f'"{answer}"' for answer in ANSWERS)
    return Claim(
        EXPERIMENT,
        {
            AT_RANDOM: f"prompt length={PROMPT} init=random",
            AT_LABELS: f"prompt length={PROMPT} labels=[{labels}]",
        },
        rates=(1e-2, 5e-2),
        best=max,
        alone=lambda: right(margins(task.base, task.test, task.answers)),
        run=run,
    )
