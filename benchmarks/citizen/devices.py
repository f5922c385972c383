"""More than one device: two processes, by torchrun and gloo, learn what one learns."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import peft_compiler as pc
from benchmarks.citizen.cell import Case, Feature
from benchmarks.citizen.methods import METHODS
from tests.citizen.by_plan import are_alike, spread_base
from tests.citizen.on_two_processes import HOW, batch, losses

ROOT = Path(__file__).parents[2]


def distributed(case: Case) -> None:
    """DistributedDataParallel has the losses of a single process."""
    _equals_alone(case, "ddp")


def sharded(case: Case) -> None:
    """FSDP2, every block and the whole by fully_shard, has the losses of a single process."""
    _equals_alone(case, "fsdp")


def by_plan(case: Case) -> None:
    """A base of which each process has a part, by its `tp_plan`, has the losses of a whole one.

    And both processes learn the same, bit for bit.
    """
    _equals_alone(case, "tp_plan")


def _equals_alone(case: Case, how: str) -> None:
    expected = losses(case.untrained().train(), batch())
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "losses.json")
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command = [*launcher, "-m", "benchmarks.citizen.devices", how, case.method, str(output)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
        assert result.returncode == 0, result.stderr[-300:]
        found = json.loads(output.read_text())
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=5e-6, rtol=1e-5)


def _as_one_of_two(how: str, method: str, output: str) -> None:
    """Trains on half of the batch, or with half of the weights; the first process writes the losses."""
    torch.distributed.init_process_group("gloo")
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    if how in HOW:
        model = HOW[how](Case(method, "llama").untrained().train())
        found = losses(model, batch().chunk(size)[rank])
    else:
        model = pc.compile(spread_base("llama", Path(output).parent), METHODS[method]).train()
        found = losses(model, batch())
        assert are_alike(model), "the processes have learnt different things"
    if rank == 0:
        Path(output).write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


FEATURES = (
    Feature("DDP", distributed, ("llama",)),
    Feature("FSDP2", sharded, ("llama",)),
    Feature("tensor parallel", by_plan, ("llama",)),
)

if __name__ == "__main__":
    _as_one_of_two(*sys.argv[1:])
