"""Trains compiled decoders, run by torchrun as one of two processes; argument: where to write the losses."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import peft_compiler as pc
from tests import zoo
from tests.citizen.by_plan import are_alike, spread_base, tried

SPECS = {
    "several": "LoRA r=4 on all linear; adapter width=8 after FFN; deep prompts length=3; IA3 on v",
    "on the weight": "DoRA r=4 on q,v; OFT block_size=8 on up",
    "in front": "prompt length=3; train norm",
}
STEPS = 4


def compiled(spec: str) -> Any:
    return pc.compile(zoo.build("llama"), SPECS[spec]).train()


def batch() -> Tensor:
    return torch.randint(3, zoo.VOCABULARY, (4, 8), generator=torch.Generator().manual_seed(1))


def losses(model: nn.Module, ids: Tensor) -> list[float]:
    """Returns the loss of each step, averaged over the processes where there are several."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    found: list[float] = []
    for _ in range(STEPS):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach().clone()
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(mean)
            mean /= torch.distributed.get_world_size()
        found.append(mean.item())
    settle()
    return found


def settle() -> None:
    """Waits for the other process, so that gloo's threads let go of what they reduced.

    They take the interpreter's lock for that. A DistributedDataParallel that is collected at the end of a
    process waits for these threads, and keeps the lock: without a pause before, each may wait for the other.
    """
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def distributed(model: Any) -> nn.Module:
    return DistributedDataParallel(model)


def sharded(model: Any) -> nn.Module:
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    blocks = model.model.layers
    uses = Counter(module for block in blocks for module in block.modules())
    # What several blocks share is sharded by itself, the innermost first: FSDP2 takes no parameter twice.
    for module in reversed([module for module, count in uses.items() if count > 1]):
        if any(True for _ in module.parameters(recurse=False)):
            fully_shard(module, mesh=mesh)
    for block in blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


HOW = {"ddp": distributed, "fsdp": sharded}


def main(output: str) -> None:
    torch.distributed.init_process_group("gloo")
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    part, folder = batch().chunk(size)[rank], Path(output).parent
    found: dict[str, Any] = {
        how: {spec: losses(together(compiled(spec)), part) for spec in SPECS} for how, together in HOW.items()
    }
    tuned = {spec: pc.compile(spread_base("llama", folder), SPECS[spec]).train() for spec in SPECS}
    # Each process takes the whole batch, and has a part of each weight.
    found["tp_plan"] = {spec: losses(model, batch()) for spec, model in tuned.items()}
    found["alike"] = {spec: are_alike(model) for spec, model in tuned.items()}
    found["tried"] = tried(folder, batch())
    if rank == 0:
        Path(output).write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
