"""The demo from plan to reload, on a model that takes seconds."""

import io
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from peft_compiler.demo.run import run
from peft_compiler.demo.task import Task
from tests.zoo import build, inputs

EXAMPLES = [{"input_ids": torch.arange(6) + start, "labels": start % 2} for start in range(8)]


def classifier() -> nn.Module:
    model = build("bert")
    model.config.problem_type = "single_label_classification"
    return model


def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {
        "input_ids": torch.stack([each["input_ids"] for each in examples]),
        "labels": torch.tensor([each["labels"] for each in examples]),
    }


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    batch = collate(EXAMPLES)
    return (model.eval()(**batch).logits.argmax(-1) == batch["labels"]).float().mean().item()


TASK = Task(
    title="a tiny BERT learns even from odd",
    spec="LoRA r=2 on q,v; adapters width=4 after FFN; deep prompts length=3; train head",
    load=classifier,
    examples=EXAMPLES,
    collate=collate,
    batch=inputs("bert"),
    score=accuracy,
    measure="accuracy on what it was trained on",
    references=lambda: {"coin": 0.5},
    training={"max_steps": 3, "per_device_train_batch_size": 4, "disable_tqdm": True},
)


@pytest.fixture(scope="module")
def shown() -> str:
    text = io.StringIO()
    assert run(TASK, Console(file=text, width=110))
    return text.getvalue()


def test_every_promise_is_kept_and_shown(shown: str) -> None:
    assert "✗" not in shown
    assert "✓ the base is bit-equal to what it was before" in shown
    assert "✓ a fresh base with the saved folder gives equal outputs" in shown


def test_the_plan_and_a_rewritten_block_are_shown(shown: str) -> None:
    assert "trainable parameters" in shown
    assert "def forward(self" in shown


def test_scores_stand_beside_what_they_are_compared_with(shown: str) -> None:
    for row in ("coin", "compiled, untrained", "compiled, trained"):
        assert row in shown
