"""transformers' Trainer keeps of a compiled module that is none of its models what was inserted, too."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

import peft_compiler as pc
from peft_compiler.plan import is_inserted
from tests import zoo
from tests.citizen.learning import QUIET, losses, same, values
from tests.zoo import HIDDEN

SPEC = "LoRA r=2 on q,v; adapters width=4 after FFN; train head"


class Scored(nn.Module):
    """A module of nobody's library, with a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = zoo.build("torch_encoder")
        self.head = nn.Linear(HIDDEN, 2)

    def forward(self, src: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.head(self.encoder(src).mean(1))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def scored() -> Scored:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Scored().eval()


def trainer(tuned: nn.Module, folder: Path) -> Trainer:
    draws = torch.Generator().manual_seed(0)
    rows = [{"src": torch.randn(5, HIDDEN, generator=draws), "labels": row % 2} for row in range(16)]
    few: Any = {"max_steps": 6, "save_steps": 3, "logging_steps": 1, "learning_rate": 0.02}
    return Trainer(tuned, TrainingArguments(str(folder), **few, **QUIET), train_dataset=rows)  # pyright: ignore


@pytest.mark.parametrize("spec", [SPEC, "VeRA r=2 on q,v"])
def test_an_interrupted_run_of_a_plain_module_goes_on_from_insertions_alone(
    tmp_path: Path, spec: str
) -> None:
    base = scored()
    before, whole, half = values(base), pc.compile(base, spec), pc.compile(base, spec)
    uninterrupted = trainer(whole, tmp_path / "whole")
    uninterrupted.train()
    folder = tmp_path / "whole" / "checkpoint-3"
    assert all(map(is_inserted, load_file(folder / "model.safetensors")))
    resumed = trainer(half, tmp_path / "half")
    resumed.train(resume_from_checkpoint=str(folder))
    assert losses(resumed) == losses(uninterrupted)
    assert same(half, whole.state_dict())
    assert same(base, before)
    assert same(pc.load(base, tmp_path / "whole" / "checkpoint-6"), whole.state_dict())


def test_everyone_else_gets_the_whole_state_of_a_plain_module() -> None:
    tuned = pc.compile(scored(), SPEC)
    assert {name for name in tuned.state_dict() if not is_inserted(name)} == set(scored().state_dict())


def test_a_checkpoint_of_a_plain_module_is_refused_by_another(tmp_path: Path) -> None:
    trainer(pc.compile(scored(), SPEC), tmp_path).train()
    folder = tmp_path / "checkpoint-3"
    other = pc.compile(scored(), "LoRA r=3 on q")
    with pytest.raises(pc.InterchangeError, match="the state does not belong to this compiled model"):
        trainer(other, tmp_path / "other").train(resume_from_checkpoint=str(folder))
    with pytest.raises(pc.InterchangeError, match="the adapter does not belong to this base"):
        pc.load(zoo.build("torch_encoder"), folder)
