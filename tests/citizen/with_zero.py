"""Trains compiled decoders with ZeRO, run by torchrun as one of two; argument: where to write the losses."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from accelerate import Accelerator, DeepSpeedPlugin
from accelerate.state import AcceleratorState
from torch import nn

import peft_compiler as pc
from tests import zoo
from tests.citizen.on_two_processes import SPECS, STEPS, batch

STAGES = (1, 2, 3)


def settings(stage: int) -> dict[str, Any]:
    """Returns what DeepSpeed is told: nothing is too small to be sharded, and linears are torch's own."""
    sharding = {
        "stage": stage,
        "stage3_param_persistence_threshold": 0,
        # Or its linear, which drops the gradient mode within a forward, could not be traced.
        "memory_efficient_linear": False,
    }
    return {
        "train_micro_batch_size_per_gpu": len(batch()) // 2,
        "zero_optimization": sharding,
        "gradient_clipping": 0.0,  # it clips where nothing is said
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def losses(stage: int, spec: Any) -> list[float]:
    """Returns the loss of each step, averaged over the processes."""
    AcceleratorState._reset_state(reset_partial_state=False)
    accelerator = Accelerator(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=settings(stage)))
    tuned: Any = pc.compile(zoo.build("llama"), spec).train()
    optimizer: Any = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-2)
    tuned, optimizer = accelerator.prepare(tuned, optimizer)
    assert is_sharded(tuned) == (stage == 3)
    # accelerate counts one process where there is no accelerator; DeepSpeed counts them all.
    ids = batch().chunk(2)[torch.distributed.get_rank()]
    found: list[float] = []
    for _ in range(STEPS):
        loss = tuned(input_ids=ids, labels=ids, use_cache=False).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach().clone()
        torch.distributed.all_reduce(mean)
        found.append(mean.item() / 2)
    return found


def is_sharded(model: nn.Module) -> bool:
    """Whether no process has all of a parameter."""
    return all(parameter.numel() == 0 for parameter in model.parameters())


def main(output: str, specs: Mapping[str, Any] = SPECS) -> None:
    import deepspeed  # here, since it is not installed everywhere

    # An op that would be compiled first, for minutes; without it, gloo does the work.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    found = {stage: {name: losses(stage, spec) for name, spec in specs.items()} for stage in STAGES}
    if torch.distributed.get_rank() == 0:
        Path(output).write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
