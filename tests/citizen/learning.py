"""What trainers learn from in these tests, and trainers with settings for a run of seconds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

from tests import zoo


def examples(name: str, count: int = 16, seed: int = 0) -> list[dict[str, Tensor]]:
    """Returns unpadded inputs of a model, with labels: its input, or whether its first value is above 5."""
    draws = torch.Generator().manual_seed(seed)
    like = {key: value[1] for key, value in zoo.inputs(name).items() if key != "attention_mask"}
    found: list[dict[str, Tensor]] = []
    for _ in range(count):
        example = {key: _drawn(value, draws) for key, value in like.items()}
        target = example.get("decoder_input_ids", example.get("input_ids"))
        if name in zoo.CAUSAL + zoo.SEQ2SEQ:
            assert target is not None
            example["labels"] = target.clone()
        else:
            example["labels"] = (next(iter(example.values())).flatten()[0] > 5).long()
        found.append(example)
    return found


def _drawn(like: Tensor, draws: torch.Generator) -> Tensor:
    if like.is_floating_point():
        return torch.randn(like.shape, generator=draws)
    return torch.randint(3, 9, like.shape, generator=draws)


def batch(name: str, count: int = 4) -> dict[str, Tensor]:
    """Returns some of the examples as one batch."""
    rows = examples(name, count)
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def trainer(tuned: nn.Module, name: str, folder: Path, **settings: Any) -> Trainer:
    """Returns the trainer of a model of the zoo: six steps, each logged."""
    kind, arguments = (
        (Seq2SeqTrainer, Seq2SeqTrainingArguments) if name in zoo.SEQ2SEQ else (Trainer, TrainingArguments)
    )
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 6,
        "learning_rate": 0.02,
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "save_strategy": "no",
    }
    return kind(
        tuned,
        arguments(**defaults | QUIET | settings),
        train_dataset=examples(name),
        eval_dataset=examples(name, 4, seed=1),
    )


QUIET: Mapping[str, Any] = {
    "report_to": [],
    "use_cpu": True,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}
"""Settings of every trainer here."""


def losses(of: Trainer) -> list[float]:
    """Returns the loss of each step."""
    return [entry["loss"] for entry in of.state.log_history if "loss" in entry]


def values(model: nn.Module) -> dict[str, Tensor]:
    """Returns copies of every parameter and buffer, to compare with."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model: nn.Module, before: Mapping[str, Tensor]) -> bool:
    """Returns whether every parameter and buffer is bit for bit what it was."""
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Returns the parameters that a trainer changes."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
