"""An encoder learns whether people find that a sentence praises a movie."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import DataCollatorWithPadding, PreTrainedModel

from peft_compiler.demo.task import Batch, Task
from peft_compiler.demo.texts import Example, movie_sentences
from peft_compiler.demo.weights import encoder


def sentiment(seed: int = 0) -> Task:
    """Returns the task: MiniLM-L6, 2,000 sentences to train on, 1,000 others to be right about."""
    base, tokenizer = encoder(seed)
    train, test = movie_sentences(2000, 1000, seed)
    collate = DataCollatorWithPadding(tokenizer)

    def inputs(examples: Iterable[Example]) -> list[dict[str, Any]]:
        encoded = ((tokenizer(each.text, truncation=True, max_length=64), each.label) for each in examples)
        return [{**tokens, "labels": label} for tokens, label in encoded]

    def batches(examples: list[dict[str, Any]]) -> Iterator[Batch]:
        by_length = sorted(examples, key=lambda each: len(each["input_ids"]))  # less padding, less work
        for start in range(0, len(by_length), 50):
            yield dict(collate(by_length[start : start + 50]))

    train_inputs, test_inputs = inputs(train), inputs(test)

    praise = sum(each.label for each in test) / len(test)
    return Task(
        title=f"MiniLM-L6 learns from {len(train):,} movie sentences whether they praise",
        # The head is trained because it is new: the package holds none.
        spec="LoRA r=8 on q,v; adapters after FFN; deep prompts on every layer; train head",
        load=lambda: encoder(seed)[0],
        examples=train_inputs,
        collate=lambda examples: dict(collate(examples)),
        batch=next(batches(test_inputs[:8])),
        score=lambda model: accuracy(model, batches(test_inputs)),
        measure=f"accuracy on {len(test):,} other sentences",
        references=lambda: {
            "majority class": max(praise, 1 - praise),
            "frozen encoder + logistic regression": logistic_regression(
                sentence_vectors(base, batches(train_inputs)), sentence_vectors(base, batches(test_inputs))
            ),
        },
        training={
            "num_train_epochs": 1,
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 16,
            "train_sampling_strategy": "group_by_length",
        },
    )


@torch.no_grad()
def accuracy(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Returns the share of examples whose label the model gives the higher logit."""
    model.eval()
    hits = [model(**batch).logits.argmax(-1) == batch["labels"] for batch in batches]
    return torch.cat(hits).float().mean().item()


@torch.no_grad()
def sentence_vectors(model: PreTrainedModel, batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """Returns each sentence's vector as the model's authors make it, (examples, width), and the labels.

    It is the mean of the last hidden states, at length one.
    """
    model.eval()
    vectors, labels = list[Tensor](), list[Tensor]()
    for batch in batches:
        hidden = model.base_model(
            batch["input_ids"], attention_mask=batch["attention_mask"]
        ).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        vectors.append(normalize((hidden * mask).sum(1)))
        labels.append(batch["labels"])
    return torch.cat(vectors), torch.cat(labels)


def logistic_regression(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    """Returns the accuracy on `test` of a logistic regression fitted to `train`."""
    classifier = LogisticRegression(max_iter=1000).fit(train[0].numpy(), train[1].numpy())
    return float(classifier.score(test[0].numpy(), test[1].numpy()))
