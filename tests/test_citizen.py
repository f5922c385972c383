"""A compiled model goes where its base goes: checkpointing, torch.compile, dtypes, frozen statistics."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peft_compiler.compiling import compile
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
def test_insertions_take_the_dtype_of_their_host(name: str) -> None:
    tuned = compile(zoo.build(name).to(torch.bfloat16), SENTENCE)
    assert {parameter.dtype for parameter in tuned.parameters()} == {torch.bfloat16}
