"""`estimate`: the memory that training takes on each of several devices, found without weights.

The formulas are in docs/devices.md. Weights, gradients and the states of AdamW are counted; what a
step keeps for its backward pass is what autograd saves in one run on the meta device.
"""

import inspect
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from peft_compiler.activations import Kept, kept_by_step
from peft_compiler.analysis.find_sites import find_sites
from peft_compiler.compiling import Source, compile, plan
from peft_compiler.errors import PlanError
from peft_compiler.lowering.lower import shared_copy
from peft_compiler.plan import Plan, is_inserted
from peft_compiler.quantised import parts_of
from peft_compiler.site import Role

_STATES_OF_ADAMW = 2
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Estimate:
    """What training by a plan takes, in bytes.

    Attributes:
        plan: What is inserted where.
        devices: How many devices share weights, gradients and optimiser states evenly.
        batch: Sequences in a step of one device.
        length: Tokens in each.
        weights: Bytes of the base by dtype.
        gathered: Bytes of the largest block of the base, which is whole while it runs.
        trainable: Bytes of the inserted parameters.
        kept: What one device keeps for its backward pass.
    """

    plan: Plan
    devices: int
    batch: int
    length: int
    weights: Mapping[str, int]
    gathered: int
    trainable: int
    kept: Kept

    @property
    def sharded(self) -> int:
        """Bytes that the devices share: weights, and of each inserted parameter gradient and states too."""
        return sum(self.weights.values()) + self.trainable * (2 + _STATES_OF_ADAMW)

    @property
    def always(self) -> float:
        """Bytes on each device whatever a step keeps: its share, and a whole block where they are several."""
        return self.sharded / self.devices + (self.gathered if self.devices > 1 else 0)

    @property
    def peak(self) -> float:
        """Bytes on each device without checkpoints."""
        return self.always + self.kept.without_checkpoints

    @property
    def peak_with_checkpoints(self) -> float:
        """Bytes on each device with a checkpoint at each block."""
        return self.always + self.kept.with_checkpoints

    def describe(self) -> dict[str, Any]:
        """Returns plain data: every number that the table is made of, in bytes."""
        return {
            "devices": self.devices,
            "batch": self.batch,
            "length": self.length,
            "weights": dict(self.weights),
            "whole_block": self.gathered,
            "inserted": self.trainable,
            "kept": asdict(self.kept),
            "peak": round(self.peak),
            "peak_with_checkpoints": round(self.peak_with_checkpoints),
        }

    def __str__(self) -> str:
        console = Console(width=110, color_system=None)
        with console.capture() as capture:
            console.print(_table(self), highlight=False)
        lines = [line.rstrip() for line in capture.get().splitlines()]
        assumed = (
            f"{self.devices} devices, on each {self.batch} x {self.length} tokens; "
            "shards as FSDP makes them; AdamW; attention that keeps no scores"
        )
        return "\n".join([*filter(None, lines), f"  {assumed}"])


def estimate(
    model: nn.Module, spec: Source, devices: int = 1, batch: int = 1, length: int = 2048
) -> Estimate:
    """Returns what it takes to train `model`, which may be on the meta device, compiled by `spec`.

    Raises:
        SpecError, CaptureError, PlanError: As `plan` does; PlanError also where the model takes no token ids.
    """
    if "input_ids" not in inspect.signature(model.forward).parameters:
        raise PlanError(
            f"a {type(model).__name__} takes no input_ids: "
            "what a step keeps is known of models of tokens only"
        )
    planned = plan(model, spec)
    meta = _on_meta(model)
    tuned = compile(meta, spec)
    blocks = {site.path for site in find_sites(meta) if site.role is Role.BLOCK}
    inserted = [parameter for name, parameter in tuned.named_parameters() if is_inserted(name)]
    return Estimate(
        planned,
        devices,
        batch,
        length,
        weights=_bytes_by_dtype(model),
        gathered=max((_bytes(model.get_submodule(path)) for path in blocks), default=0),
        trainable=sum(parameter.nbytes for parameter in inserted if parameter.requires_grad),
        kept=kept_by_step(tuned, blocks, batch, length),
    )


def _on_meta(model: nn.Module) -> nn.Module:
    parameters = [*model.parameters()]
    return model if all(p.is_meta for p in parameters) else shared_copy(model).to("meta")


def _bytes_by_dtype(model: nn.Module) -> dict[str, int]:
    found: Counter[str] = Counter()
    for parameter in model.parameters():
        for part in parts_of(parameter.detach()):
            found[str(part.dtype).removeprefix("torch.")] += part.nbytes
    return dict(found)


def _bytes(module: nn.Module) -> int:
    return sum(_bytes_by_dtype(module).values())


# ---- the table


def _table(made: Estimate) -> Table:
    table = Table(box=box.HORIZONTALS, pad_edge=False, show_edge=False)
    table.add_column("memory in GiB")
    table.add_column("in all", justify="right")
    table.add_column(f"each of {made.devices}", justify="right")

    def add(name: str, whole: float | None, each: float) -> None:
        shown = [f"{value / _GIB:,.3f}" for value in (whole, each) if value is not None]
        table.add_row(name, *(shown if whole is not None else ["", *shown]))

    for dtype, size in made.weights.items():
        add(f"weights, {dtype}", size, size / made.devices)
    if made.devices > 1:
        add("the block that runs, whole", None, made.gathered)
    add("inserted parameters", made.trainable, made.trainable / made.devices)
    add("their gradients", made.trainable, made.trainable / made.devices)
    add("their states in AdamW", 2 * made.trainable, 2 * made.trainable / made.devices)
    add("activations", None, made.kept.without_checkpoints)
    add("  with gradient checkpointing", None, made.kept.with_checkpoints)
    add("together", None, made.peak)
    add("  with gradient checkpointing", None, made.peak_with_checkpoints)
    return table
