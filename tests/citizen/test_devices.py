"""More than one device: two processes learn what one does, and weights may lie elsewhere."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
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
from tests.citizen.by_plan import MERGED, MOVED, NORMS, WORDS, found_in, gradients, moved
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
@pytest.mark.parametrize("how", [*HOW, "tp_plan"])
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
    "it is spread over devices already, and not by a tp_plan alone: compile the whole "
    "model first, and call fully_shard on what comes back"
)


@pytest.mark.usefixtures("one_process")
def test_a_model_that_is_sharded_already_is_refused() -> None:
    model = fully_shard(zoo.build("llama"), mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(pc.PlanError) as caught:
        pc.compile(model, "LoRA on q")
    assert f"model.layers.0.self_attn.q_proj.weight: {SPREAD}" in caught.value.problems


@pytest.mark.parametrize("spec", SPECS)
def test_processes_with_parts_of_the_weights_learn_the_same(spec: str, together: dict[str, Any]) -> None:
    assert together["alike"][spec]


def same(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert found["tokens"] == expected["tokens"]
    torch.testing.assert_close(torch.tensor(found["logits"]), torch.tensor(expected["logits"]))


@pytest.fixture(scope="module")
def tried(together: dict[str, Any]) -> dict[str, Any]:
    """What was found in models that a tp_plan spreads."""
    return together["tried"]


@pytest.mark.parametrize(
    ("name", "spec", "found", "of_gradients"),
    [("llama", MOVED, "moved", "gradients"), ("qwen3", NORMS, "norms", "gradients of norms")],
)
def test_a_spread_model_computes_what_a_whole_one_does(
    name: str, spec: str, found: str, of_gradients: str, tried: dict[str, Any]
) -> None:
    whole = moved(pc.compile(zoo.build(name), spec))
    same(tried[found], found_in(whole, batch()))
    for parameter, expected in gradients(whole, batch()).items():
        torch.testing.assert_close(torch.tensor(tried[of_gradients][parameter]), torch.tensor(expected))


def test_prompts_start_at_the_words_of_a_spread_model(tried: dict[str, Any]) -> None:
    same(tried["words"], found_in(pc.compile(zoo.build("llama"), WORDS).eval(), batch()))


def test_what_one_of_the_processes_saves_is_what_a_single_one_does(tried: dict[str, Any]) -> None:
    assert tried["files"] == ["adapter.json", "adapter.safetensors"]
    assert tried["loaded"] == tried["moved"]


def test_a_spread_model_keeps_its_promises(tried: dict[str, Any]) -> None:
    assert tried["verified"] == []
    assert tried["copied"] == tried["moved"]
    same(tried["merged"], tried["foldable"])
    same(tried["merged"], found_in(moved(pc.compile(zoo.build("llama"), MERGED)), batch()))


def test_places_of_which_a_process_has_other_parts_are_refused(tried: dict[str, Any]) -> None:
    assert tried["refused"] == [
        "model.layers.0.mlp.experts.gate_up_proj:feed_forward.up: the tp_plan gives this MixtralExperts the "
        "heads or experts of one process alone, so that what joins it would learn from these: leave it out",
        "model.layers.0.mlp.gate_up_proj:feed_forward.up: each process has other parts of its weight "
        "(linear) than one piece of the rows or columns of a matrix: leave it out",
    ]


def test_replicas_for_data_parallel_are_refused() -> None:
    tuned: Any = compiled("several")
    for rewritten in (tuned, tuned.model.layers[0]):
        with pytest.raises(pc.LoweringError) as caught:
            rewritten._replicate_for_data_parallel()
        assert str(caught.value) == (
            "nn.DataParallel copies modules without what their graphs need: "
            "use DistributedDataParallel or fully_shard"
        )
