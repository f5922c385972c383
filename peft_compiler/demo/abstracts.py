"""A decoder learns to write like the abstracts of papers on computational linguistics."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import DataCollatorForLanguageModeling

from peft_compiler.demo import texts
from peft_compiler.demo.task import Batch, Task
from peft_compiler.demo.weights import decoder

LENGTH = 64
"""Tokens of each abstract that are read: the demo is to end in minutes."""


def abstracts() -> Task:
    """Returns the task: SmolLM2-135M, the starts of 100 abstracts, the loss on 24 others."""
    base, tokenizer = decoder()
    collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)

    def inputs(split: str) -> list[dict[str, Any]]:
        return [dict(tokenizer(text, truncation=True, max_length=LENGTH)) for text in texts.abstracts(split)]

    train_inputs, test_inputs = inputs("train"), inputs("val")[:24]
    test_batches = [
        dict(collate(test_inputs[start : start + 10])) for start in range(0, len(test_inputs), 10)
    ]
    return Task(
        title=f"SmolLM2-135M learns from {len(train_inputs)} abstracts to write the next word",
        # At the paper's scale of 1 the prompts drown what the decoder knows (loss 11.5, the base's is 4.6),
        # and a few steps would only mend that.
        spec="LoRA r=8 on q,v; adapters after FFN; deep prompts scale=0.1 on every layer",
        load=lambda: decoder()[0],
        examples=train_inputs,
        collate=lambda examples: dict(collate(examples)),
        batch=dict(collate(test_inputs[:2])),
        score=lambda model: loss(model, test_batches),
        measure=f"loss on {len(test_inputs)} other abstracts (less is better)",
        references=lambda: {"base model": loss(base, test_batches)},
        training={"max_steps": 20, "learning_rate": 1e-3, "per_device_train_batch_size": 4},
    )


@torch.no_grad()
def loss(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Returns the mean of the batches' next-token losses."""
    model.eval()
    return torch.stack([model(**batch).loss for batch in batches]).mean().item()
