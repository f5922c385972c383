"""A real decoder learns from real abstracts by TRL's SFTTrainer, and a new process goes on writing with it.

`python -m benchmarks.citizen.sft` trains what is inserted into SmolLM2-135M, has the trainer save it, and
starts another Python that knows nothing but that folder. It ends with an error unless the loss fell, the
base is bit for bit what it was, and the other process finds the same loss, bit for bit.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from trl import SFTConfig, SFTTrainer

import peft_compiler as pc
from peft_compiler.demo import texts
from peft_compiler.demo.run import digests
from peft_compiler.demo.weights import decoder

SPEC = "LoRA r=8 on all linear; deep prompts length=4 scale=0.1 on every layer"
LENGTH = 64
"""Tokens of each abstract that are read: minutes on two cores."""
PROMPT = "In this paper, we present"


@torch.no_grad()
def loss_of(model: Any, tokenizer: Any, count: int) -> float:
    """Returns the mean loss on abstracts that were not trained on."""
    model.eval()
    losses: list[float] = []
    for text in texts.abstracts("val")[:count]:
        ids = tokenizer(text, truncation=True, max_length=LENGTH, return_tensors="pt")["input_ids"]
        losses.append(model(input_ids=ids, labels=ids).loss.item())
    return sum(losses) / len(losses)


def written_by(model: Any, tokenizer: Any) -> str:
    """Returns what a model writes after the prompt, taking the likeliest word each time."""
    inputs = tokenizer(PROMPT, return_tensors="pt")
    found = model.eval().generate(**inputs, max_new_tokens=32, do_sample=False)
    return tokenizer.decode(found[0], skip_special_tokens=True)


def learn(tuned: nn.Module, tokenizer: Any, folder: Path, steps: int) -> None:
    """Trains on the abstracts and has the trainer save the result."""
    arguments = SFTConfig(
        output_dir=str(folder),
        max_steps=steps,
        learning_rate=1e-3,
        per_device_train_batch_size=4,
        max_length=LENGTH,
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    data = Dataset.from_list([{"text": text} for text in texts.abstracts("train")])
    trainer = SFTTrainer(tuned, arguments, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    trainer.save_model(str(folder))


def reload(folder: Path, count: int) -> None:
    """What the other process does: loads, and prints the loss in full and what is written."""
    base, tokenizer = decoder()
    tuned = pc.load(base, folder)
    print(loss_of(tuned, tokenizer, count).hex())
    print(written_by(tuned, tokenizer))


def main() -> None:
    """Trains, reloads elsewhere, and prints what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=15, help="of training, 4 abstracts each")
    parser.add_argument("--count", type=int, default=12, help="of abstracts to judge by")
    parser.add_argument("--reload", type=Path, help="only load this folder, and show what it has learnt")
    chosen = parser.parse_args()
    if chosen.reload is not None:
        reload(chosen.reload, chosen.count)
        return
    base, tokenizer = decoder()
    untouched = digests(base)
    tuned = pc.compile(base, SPEC)
    before = loss_of(base, tokenizer, chosen.count)
    print(f"base:    loss {before:.4f} on {chosen.count} unseen abstracts\n  {written_by(base, tokenizer)}")
    print(f"untrained: loss {loss_of(tuned, tokenizer, chosen.count):.4f}")
    with tempfile.TemporaryDirectory() as name:
        folder, start = Path(name), time.monotonic()
        learn(tuned, tokenizer, folder, chosen.steps)
        after, spent = loss_of(tuned, tokenizer, chosen.count), time.monotonic() - start
        size = (folder / "model.safetensors").stat().st_size
        print(f"trained: loss {after:.4f} after {chosen.steps} steps in {spent:.0f} s; {size:,} bytes saved")
        command = [
            sys.executable,
            "-m",
            "benchmarks.citizen.sft",
            "--reload",
            name,
            "--count",
            str(chosen.count),
        ]
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n", 1)
    print(f"reloaded in a new process: loss {float.fromhex(answer[0]):.4f}\n  {answer[1].strip()}")
    assert after < before, "the loss did not fall"
    assert digests(base) == untouched, "the base was changed"
    assert float.fromhex(answer[0]) == after, "the other process finds another loss"
    assert answer[1].strip() == written_by(tuned, tokenizer).strip(), (
        "the other process writes something else"
    )


if __name__ == "__main__":
    main()
