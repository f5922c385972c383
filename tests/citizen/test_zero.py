"""DeepSpeed's ZeRO: two processes that share states, gradients and parameters learn what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.citizen.on_two_processes import SPECS, batch, compiled, losses

ROOT = Path(__file__).parents[2]

pytest.importorskip(
    "deepspeed", reason="DeepSpeed has no wheels, and is no dependency: pip install deepspeed to run this"
)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The losses of two processes, by stage and by spec."""
    output = tmp_path_factory.mktemp("zero") / "losses.json"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "DS_ACCELERATOR": "cpu",
        "ACCELERATE_USE_DEEPSPEED": "true",
    }
    command = [*launcher, "-m", "tests.citizen.with_zero", str(output)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=600)
    assert result.returncode == 0, result.stderr
    return json.loads(output.read_text())


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("stage", ["1", "2", "3"])
def test_two_processes_have_the_losses_of_one(stage: str, spec: str, together: dict[str, Any]) -> None:
    alone = losses(compiled(spec), batch())
    assert together[stage][spec] == pytest.approx(alone, abs=2e-6)
