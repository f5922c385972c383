"""What finding the sites of a large model costs, on the meta device: CPU time, memory, and how both grow.

Each shape is measured in a process of its own, on one thread: the median of several runs, and
the largest resident size of the process, everything that it imports included.

    python -m benchmarks.capture            # prints the tables
    python -m benchmarks.capture --write    # and writes them to capture.md, and the plot to capture.svg
"""

import argparse
import multiprocessing
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import matplotlib
import torch
import transformers
from torch import nn

matplotlib.use("agg")
from matplotlib import pyplot

from peft_compiler.analysis.capture import capture
from peft_compiler.analysis.find_sites import sites_of

RESULTS = Path(__file__).with_suffix(".md")
PLOT = Path(__file__).with_suffix(".svg")
DEPTHS = (8, 16, 32, 64, 96, 128)
MIB = 2**20


def llama(**settings: Any) -> nn.Module:
    """Returns a Llama with the vocabulary of its third version."""
    config = transformers.LlamaConfig(vocab_size=128256, num_key_value_heads=8, **settings)
    return transformers.LlamaForCausalLM(config)


def llama_8b(layers: int = 32) -> nn.Module:
    """Returns Llama-3-8B's shape."""
    return llama(hidden_size=4096, intermediate_size=14336, num_attention_heads=32, num_hidden_layers=layers)


def llama_70b() -> nn.Module:
    """Returns Llama-3-70B's shape."""
    return llama(hidden_size=8192, intermediate_size=28672, num_attention_heads=64, num_hidden_layers=80)


def deepseek_v3() -> nn.Module:
    """Returns DeepSeek-V3's shape, with 61 layers and 256 experts."""
    return transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config())


def gpt3(layers: int = 96) -> nn.Module:
    """Returns GPT-3's shape, as a GPT-2."""
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=layers, n_embd=12288, n_head=96))


def vit(layers: int = 12) -> nn.Module:
    """Returns ViT-B's shape."""
    return transformers.ViTModel(transformers.ViTConfig(num_hidden_layers=layers))


@dataclass(frozen=True)
class Shape:
    """A model to measure, and the CPU time in seconds that it may take, if that is bounded."""

    name: str
    build: Callable[[], nn.Module]
    bound: float | None = None


SHAPES = (
    Shape("Llama-3-8B", llama_8b, 0.6),
    Shape("Llama-3-70B", llama_70b, 1.5),
    Shape("DeepSeek-V3", deepseek_v3, 2.5),
    Shape("GPT-3, 96 layers", gpt3),
)
GROWING: Mapping[str, Callable[[int], nn.Module]] = {"Llama-3-8B": llama_8b, "GPT-3": gpt3, "ViT-B": vit}


@dataclass(frozen=True)
class Cost:
    """What one model took: CPU seconds for capture and for roles, sites found, bytes at the most."""

    capture: float
    roles: float
    sites: int
    memory: int

    @property
    def seconds(self) -> float:
        """CPU time altogether."""
        return self.capture + self.roles


def measured(build: Callable[[], nn.Module], runs: int) -> Cost:
    """Returns the cost of a model, measured in a process of its own."""
    context = multiprocessing.get_context("spawn")
    results, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(build, runs, sender))
    process.start()
    cost: Cost = results.recv()
    process.join()
    return cost


def _measure(build: Callable[[], nn.Module], runs: int, sender: Connection) -> None:
    torch.set_num_threads(1)
    with torch.device("meta"):
        model = build().eval()
    times: list[tuple[float, float]] = []
    sites = 0
    for _ in range(runs):
        start = time.process_time()
        graph = capture(model)
        captured = time.process_time()
        sites = len(sites_of(graph))
        times.append((captured - start, time.process_time() - captured))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    capturing, inferring = (statistics.median(each) for each in zip(*times, strict=True))
    sender.send(Cost(capturing, inferring, sites, memory))


def grown(depths: Sequence[int], runs: int) -> dict[str, list[Cost]]:
    """Returns for each kind of model what it costs at each depth."""
    return {
        name: [measured(partial(build, layers), runs) for layers in depths] for name, build in GROWING.items()
    }


def rows_of_shapes(costs: Mapping[Shape, Cost]) -> Iterator[str]:
    """Yields a row for each shape."""
    for shape, cost in costs.items():
        bound = "" if shape.bound is None else f"{shape.bound}"
        yield (
            f"| {shape.name} | {cost.sites} | {cost.capture:.2f} | {cost.roles:.2f} | {cost.seconds:.2f} "
            f"| {bound} | {cost.memory / MIB:.0f} |"
        )


def report(costs: Mapping[Shape, Cost], depths: Sequence[int], growth: Mapping[str, list[Cost]]) -> str:
    """Returns the page."""
    rows = "\n".join(rows_of_shapes(costs))
    head = "| model | " + " | ".join(f"{layers}" for layers in depths) + " | a layer more, in ms |"
    lines = [head, "| --- |" + " --- |" * (len(depths) + 1)]
    for name, found in growth.items():
        each = 1000 * (found[-1].seconds - found[0].seconds) / (depths[-1] - depths[0])
        lines.append(
            f"| {name} | " + " | ".join(f"{cost.seconds:.2f}" for cost in found) + f" | {each:.1f} |"
        )
    table = "\n".join(lines)
    return f"""# What finding sites costs

On the meta device, without weights; process CPU seconds on one thread (median), and the largest resident
size of the process with all that it imports. Written by `make bench`, torch {torch.__version__}, transformers
{transformers.__version__}, {platform.machine()}. Bounds: seconds as in the table, 1024 MiB.

| shape | sites | capture | roles | together | bound | MiB |
| --- | --- | --- | --- | --- | --- | --- |
{rows}

## Growth

Seconds by the number of layers.

{table}

![seconds by layers]({PLOT.name})
"""


def draw(depths: Sequence[int], growth: Mapping[str, list[Cost]], file: Path) -> None:
    """Writes the plot."""
    with pyplot.rc_context({"svg.hashsalt": "capture", "svg.fonttype": "none", "font.size": 8}):
        figure, axes = pyplot.subplots(figsize=(6, 3.5))
        for name, found in growth.items():
            axes.plot(depths, [cost.seconds for cost in found], marker="o", markersize=4, label=name)
        axes.set_xlabel("layers")
        axes.set_ylabel("CPU seconds")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper left", frameon=False)
        figure.savefig(file, metadata={"Date": None}, bbox_inches="tight")
        pyplot.close(figure)


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description="Measure capture and roles of large models.")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name} and {PLOT.name}")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    costs = {shape: measured(shape.build, arguments.runs) for shape in SHAPES}
    growth = grown(DEPTHS, arguments.runs)
    page = report(costs, DEPTHS, growth)
    print(page)
    if arguments.write:
        RESULTS.write_text(page)
        draw(DEPTHS, growth, PLOT)


if __name__ == "__main__":
    main()
