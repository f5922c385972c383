"""What a compiled LoRA costs: CPU time of this process, as a ratio to the frozen base.

Base, compiled model and peft's model of the same weights run in turn, round by round in one
process on one thread; a ratio is the median over the rounds of that round's ratio. The base's
activations carry gradients, so that its backward pass does the work that no method can avoid.

    python benchmarks/overhead.py            # prints the table
    python benchmarks/overhead.py --write    # and writes it to overhead.md
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import peft
import torch
import transformers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import peft_compiler as pc

RESULTS = Path(__file__).with_suffix(".md")
QUERY_AND_VALUE = ["q_proj", "v_proj"]
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        hidden: Width of the model.
        layers: Blocks of the model.
        batch: Sequences in a step.
        length: Tokens in a sequence.
        spec: What we compile.
        targets: The same for peft.
        dropout: The dropout that both use.
        backward: Whether a step includes the backward pass.
        steps: Steps of each contender in a round.
        rounds: How often the contenders take turns.
    """

    hidden: int
    layers: int
    batch: int
    length: int
    spec: str
    targets: list[str]
    dropout: float
    backward: bool
    steps: int
    rounds: int

    @property
    def title(self) -> str:
        """The case in a few words."""
        tokens = "one token" if self.batch * self.length == 1 else f"{self.batch} × {self.length} tokens"
        return f"hidden {self.hidden} × {self.layers} layers, {tokens}"


def cases() -> Iterator[Case]:
    """Yields a model so small that overhead is everything, and one that has work to do."""
    settings = [
        ("LoRA r=8 on q,v", QUERY_AND_VALUE, 0.0),
        ("LoRA r=8 dropout=0.05 on all linear", ALL_LINEAR, 0.05),
    ]
    for spec, targets, dropout in settings:
        for backward in (False, True):
            yield Case(32, 8, 1, 1, spec, targets, dropout, backward, steps=10, rounds=40)
            yield Case(512, 4, 4, 128, spec, targets, dropout, backward, steps=1, rounds=15)


def contenders(case: Case) -> dict[str, nn.Module]:
    """Returns the frozen base, our compiled model and peft's, all in train mode and on equal weights."""
    config = LlamaConfig(
        vocab_size=99,
        hidden_size=case.hidden,
        intermediate_size=4 * case.hidden,
        num_hidden_layers=case.layers,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    torch.manual_seed(0)
    base = LlamaForCausalLM(config)
    theirs = LlamaForCausalLM(config)
    theirs.load_state_dict(base.state_dict())
    settings = peft.LoraConfig(r=8, lora_alpha=8, lora_dropout=case.dropout, target_modules=case.targets)
    models = {
        "base": base.requires_grad_(False),
        "compiled": pc.compile(base, case.spec),
        "peft": peft.get_peft_model(theirs, settings),
    }
    return {name: model.train() for name, model in models.items()}


def step(model: nn.Module, embeddings: torch.Tensor, backward: bool) -> None:
    """Runs one forward pass, and a backward pass to every activation if asked."""
    logits = model(inputs_embeds=embeddings, use_cache=False).logits
    if backward:
        logits.sum().backward()


def seconds(run: Callable[[], None], times: int) -> float:
    """Returns the CPU seconds of this process that `times` runs take."""
    start = time.process_time()
    for _ in range(times):
        run()
    return time.process_time() - start


def ratios(case: Case) -> dict[str, float]:
    """Returns the CPU time of each contender as a ratio to the base's."""
    models = contenders(case)
    embeddings = torch.randn(case.batch, case.length, case.hidden, requires_grad=True)
    runs = {
        name: lambda model=model: step(model, embeddings, case.backward) for name, model in models.items()
    }
    for run in runs.values():
        seconds(run, 3)  # the first call traces
    rounds = [{name: seconds(run, case.steps) for name, run in runs.items()} for _ in range(case.rounds)]
    return {name: statistics.median(each[name] / each["base"] for each in rounds) for name in runs}


def main() -> None:
    """Measures every case and prints the table."""
    parser = argparse.ArgumentParser(description="Measure what a compiled LoRA costs.")
    parser.add_argument("--write", action="store_true", help=f"write the table to {RESULTS.name}")
    write = parser.parse_args().write
    torch.set_num_threads(1)
    lines = ["| model | spec | step | compiled | peft |", "| --- | --- | --- | --- | --- |"]
    print("\n".join(lines))
    for case in cases():
        found = ratios(case)
        kind = "forward + backward" if case.backward else "forward"
        row = f"| {case.title} | {case.spec} | {kind} | {found['compiled']:.2f} | {found['peft']:.2f} |"
        print(row, flush=True)
        lines.append(row)
    if write:
        versions = (
            f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}"
        )
        heading = (
            "# Overhead\n\nCPU time as a ratio to the frozen base; see `overhead.py` for how it is"
            f" measured.\nWritten by `make bench` on one thread of {platform.machine()}, {versions}.\n\n"
        )
        RESULTS.write_text(heading + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
