"""The life of an adapter, shown step by step: plan, compile, verify, train, save, load."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from torch import nn
from transformers import Trainer, TrainingArguments

from peft_compiler.compiling import compile as compile_model
from peft_compiler.compiling import plan as make_plan
from peft_compiler.demo.task import Task
from peft_compiler.digests import digest
from peft_compiler.interchange import load
from peft_compiler.plan import Plan
from peft_compiler.saving import save
from peft_compiler.site import Role
from peft_compiler.verifying import verify


def run(task: Task, console: Console, seed: int = 0) -> bool:
    """Runs the task from plan to reloaded adapter, and returns whether everything held that was promised."""
    heading(console, task.title)
    base = task.load()
    untouched = digests(base)

    heading(console, "plan", task.spec)
    plan = make_plan(base, task.spec, task.batch)
    show(console, str(plan))

    tuned = compile_model(base, task.spec, task.batch, seed=seed)
    heading(console, "a rewritten block")
    show(console, rewritten_code(tuned, plan))

    report = verify(tuned)
    heading(console, "verified before training")
    show(console, str(report))

    before = task.score(tuned)
    heading(console, "training")
    train(tuned, task, seed)
    after = task.score(tuned)
    heading(console, task.measure)
    console.print(scores({**task.references(), "compiled, untrained": before, "compiled, trained": after}))

    heading(console, "what was promised")
    with tempfile.TemporaryDirectory() as folder:
        save(tuned, Path(folder) / "adapter")
        held = {
            "the base is bit-equal to what it was before": digests(base) == untouched,
            **saved_only_what_was_inserted(Path(folder) / "adapter", plan),
            "a fresh base with the saved folder gives equal outputs": torch.equal(
                logits(load(task.load(), Path(folder) / "adapter"), task), logits(tuned, task)
            ),
            "every promise holds after training": verify(tuned).ok,
        }
    for promise, holds in held.items():
        show(console, f"{'✓' if holds else '✗'} {promise}")
    return report.ok and all(held.values())


def heading(console: Console, title: str, remark: str = "") -> None:
    """Prints what comes next."""
    console.print(f"\n[bold]{title}[/bold]" + (f": {remark}" if remark else ""), highlight=False)


def show(console: Console, text: str) -> None:
    """Prints text as it is: lines are for the terminal to wrap."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def digests(model: nn.Module) -> dict[str, str]:
    """Returns a digest of each parameter and buffer."""
    return {name: digest(tensor) for name, tensor in model.state_dict().items()}


def rewritten_code(tuned: nn.Module, plan: Plan) -> str:
    """Returns the generated forward of the first module that a feed-forward insertion rewrote."""
    path = next(each.site.path for each in plan.insertions if each.site.role is Role.FEED_FORWARD)
    module = tuned.get_submodule(path)
    assert isinstance(module, torch.fx.GraphModule)
    return module.code.strip()


def train(tuned: nn.Module, task: Task, seed: int) -> None:
    """Trains what was inserted, with a progress bar."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            use_cpu=True,
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            warmup_steps=0.1,
            **task.training,
        )
        examples: Any = task.examples  # any sequence is a dataset, whatever its type says
        trainer = Trainer(tuned, arguments, data_collator=task.collate, train_dataset=examples)
        trainer.train()


def scores(rows: Mapping[str, float]) -> Table:
    """Returns a table of what was scored and how."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, score in rows.items():
        table.add_row(name, f"{score:.3f}")
    return table


def saved_only_what_was_inserted(folder: Path, plan: Plan) -> dict[str, bool]:
    """Returns what the saved file is made of, in words with its figures, and whether they agree."""
    file = folder / "adapter.safetensors"
    size = file.stat().st_size
    with safe_open(file, "pt") as saved:
        tensors = [saved.get_tensor(name) for name in saved.keys()]  # noqa: SIM118 - the file is no mapping
    weights = sum(tensor.nbytes for tensor in tensors)
    words = (
        f"the saved file is {size:,} bytes: {plan.trainable:,} inserted parameters of 4 bytes each"
        f" and a header of {size - weights:,}"
    )
    return {words: weights == 4 * plan.trainable}


@torch.no_grad()
def logits(model: nn.Module, task: Task) -> torch.Tensor:
    """Returns the model's logits for the task's batch, in eval mode."""
    return model.eval()(**task.batch).logits
