"""A compiled model goes where its base goes: checkpointing, torch.compile, dtypes, frozen statistics."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peft_compiler.compiling import compile
from peft_compiler.errors import LoweringError
from tests import zoo
from tests.test_compiling import SENTENCE, main_output


def test_batch_norm_statistics_of_a_frozen_base_stay() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm, self.out = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.norm(self.embed(x)).relu())

    model = Normed()
    tuned = compile(model, 'LoRA r=2 at "out"', example_inputs=torch.randn(4, 8)).train()
    before = tuned.get_submodule("norm").running_mean.clone()
    tuned(torch.randn(16, 8) + 3)
    assert torch.equal(tuned.get_submodule("norm").running_mean, before)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["llama", "bart"])
def test_gradient_checkpointing_gives_the_same_gradients_from_the_first_step_on(
    name: str, reentrant: bool
) -> None:
    def gradients(tuned: Any) -> list[Tensor]:
        torch.manual_seed(0)
        main_output(tuned(**zoo.inputs(name), use_cache=False)).square().mean().backward()
        return [parameter.grad for parameter in tuned.parameters() if parameter.requires_grad]

    plain, saving = (compile(zoo.build(name), SENTENCE).train() for _ in range(2))
    saving.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": reentrant})
    saving.enable_input_require_grads()
    with torch.random.fork_rng(devices=[]):
        for found, expected in zip(gradients(saving), gradients(plain), strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["llama", "bert", "torch_encoder"])
def test_torch_compile_takes_it_whole(name: str) -> None:
    tuned = compile(zoo.build(name), SENTENCE)
    torch._dynamo.reset()
    whole = torch.compile(tuned, backend="aot_eager", fullgraph=True, dynamic=True)
    extra = {"use_cache": False} if name == "llama" else {}
    with torch.no_grad():
        tuned(**zoo.inputs(name), **extra)  # a signature is traced when first met, outside compiled code
        for size in ((2, 7), (3, 11)):
            found = main_output(whole(**zoo.inputs(name, *size), **extra))
            torch.testing.assert_close(found, main_output(tuned(**zoo.inputs(name, *size), **extra)))


@pytest.mark.parametrize("name", ["llama", "vit", "torch_encoder"])
def test_insertions_are_as_precise_as_their_host_and_float32(name: str) -> None:
    for base_type, own in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        tuned = compile(zoo.build(name).to(base_type), SENTENCE)
        assert {p.dtype for p in tuned.parameters() if p.requires_grad} == {own}
        assert {p.dtype for p in tuned.parameters() if not p.requires_grad} == {base_type}


@pytest.mark.parametrize("spec", [SENTENCE, "prompt length=3"])
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects")
def test_what_torch_export_gives_is_the_model_also_on_padded_rows(spec: str) -> None:
    tuned = compile(zoo.build("llama"), spec)
    inputs = zoo.inputs("llama", 2, 7)
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[0, :3] = 0
    inputs |= {"attention_mask": mask, "use_cache": False}
    with torch.no_grad():
        expected = main_output(tuned(**inputs))  # a signature is traced when first met, outside of an export
        exported = torch.export.export(tuned, (), inputs, strict=True).module()
        torch.testing.assert_close(main_output(exported(**inputs)), expected)


def test_an_export_that_would_run_one_calls_graph_is_refused() -> None:
    tuned = compile(zoo.build("llama"), SENTENCE)
    with pytest.raises(LoweringError) as error:
        torch.export.export(tuned, (), {**zoo.inputs("llama"), "use_cache": False}, strict=False)
    assert str(error.value) == (
        "torch.export would run the graph of one earlier call in place of the forward, as it does with "
        "every GraphModule when strict=False: export with strict=True"
    )
