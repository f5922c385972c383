"""More than one device: two processes learn what one does, and weights may lie elsewhere."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import peft_compiler as pc
from tests import zoo
from tests.citizen import on_two_processes
from tests.citizen.on_two_processes import HOW, SPECS, batch, compiled, losses

ROOT = Path(__file__).parents[2]


def a_block_on_disk(model: Any) -> dict[str, str]:
    """Returns where each part of a decoder lies."""
    parts = {f"model.{name}": "cpu" for name, _ in model.model.named_children() if name != "layers"}
    return parts | {"lm_head": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}


@functools.cache
def alone(spec: str) -> list[float]:
    return losses(compiled(spec), batch())


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=batch()).logits


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes found: losses by how they work together and by spec, and a refusal."""
    output = tmp_path_factory.mktemp("two") / "losses.json"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*launcher, on_two_processes.__file__, str(output)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    return json.loads(output.read_text())


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("how", HOW)
def test_two_processes_have_the_losses_of_one(how: str, spec: str, together: dict[str, Any]) -> None:
    found = together[how][spec]
    assert found == pytest.approx(alone(spec), abs=2e-6)
    assert found[-1] < found[0]


OFFLOADED: dict[str, Callable[[Any, Path], nn.Module]] = {
    "cpu_offload": lambda model, _: accelerate.cpu_offload(model, execution_device=torch.device("cpu")),
    "disk_offload": lambda model, folder: accelerate.disk_offload(
        model, str(folder), execution_device=torch.device("cpu")
    ),
    "dispatch_model, a block on disk": lambda model, folder: accelerate.dispatch_model(
        model, a_block_on_disk(model), main_device="cpu", offload_dir=str(folder)
    ),
}


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("how", OFFLOADED)
def test_a_compiled_model_can_be_offloaded(how: str, spec: str, tmp_path: Path) -> None:
    expected = logits(compiled(spec).eval())
    tuned = OFFLOADED[how](compiled(spec).eval(), tmp_path)
    assert any(parameter.is_meta for parameter in tuned.parameters())
    assert torch.equal(logits(tuned), expected)


@pytest.mark.parametrize("spec", SPECS)
def test_a_model_that_was_dispatched_can_be_compiled(spec: str) -> None:
    base = accelerate.dispatch_model(zoo.build("llama"), {"": "cpu"}, force_hooks=True)
    assert "forward" in vars(base.get_submodule("model.layers.0.self_attn.q_proj"))
    assert losses(pc.compile(base, SPECS[spec]).train(), batch()) == alone(spec)
    assert torch.equal(logits(base), logits(zoo.build("llama")))


def test_a_merged_model_has_the_hooks_and_the_forward_of_its_base() -> None:
    base = accelerate.dispatch_model(zoo.build("llama"), {"": "cpu"}, force_hooks=True)
    tuned = pc.compile(base, "LoRA r=2 on q")
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if name.endswith("up"):
                parameter.fill_(0.1)
    torch.testing.assert_close(logits(pc.merge(tuned)), logits(tuned))
    assert not torch.equal(logits(tuned), logits(base))


@pytest.mark.parametrize("some", [True, False])
def test_a_model_that_is_offloaded_already_is_refused(some: bool, tmp_path: Path) -> None:
    how = "dispatch_model, a block on disk" if some else "cpu_offload"
    with pytest.raises(pc.PlanError) as caught:
        pc.compile(OFFLOADED[how](zoo.build("llama"), tmp_path), "LoRA on q")
    assert (
        "model.layers.1.mlp.up_proj.weight: it is offloaded: compile the model first, then dispatch it"
    ) in caught.value.problems


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


SPREAD = (
    "it is spread over devices already, by a tp_plan or fully_shard: compile the whole "
    "model first, and call fully_shard on what comes back"
)


@pytest.mark.usefixtures("one_process")
def test_a_model_that_is_sharded_already_is_refused() -> None:
    model = fully_shard(zoo.build("llama"), mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(pc.PlanError) as caught:
        pc.compile(model, "LoRA on q")
    assert f"model.layers.0.self_attn.q_proj.weight: {SPREAD}" in caught.value.problems


def test_a_model_spread_by_a_tp_plan_is_refused(together: dict[str, Any]) -> None:
    assert together["tp_plan"] == f"lm_head.weight: {SPREAD}"


def test_replicas_for_data_parallel_are_refused() -> None:
    tuned: Any = compiled("several")
    for rewritten in (tuned, tuned.model.layers[0]):
        with pytest.raises(pc.LoweringError) as caught:
            rewritten._replicate_for_data_parallel()
        assert str(caught.value) == (
            "nn.DataParallel copies modules without what their graphs need: "
            "use DistributedDataParallel or fully_shard"
        )
