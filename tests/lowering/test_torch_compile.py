"""torch.compile takes what every wiring makes in one graph, for any batch and length."""

import pytest
import torch

import peft_compiler as pc
from peft_compiler.methods import Wiring
from tests import zoo
from tests.test_compiling import main_output, stir

SPECS = [
    ("llama", "prompt length=3", {"use_cache": False}),
    ("llama", "prompt length=2 ensemble=3; lora r=2 on q", {"use_cache": False}),
    (
        "llama",
        'p-tuning template="[P] {text} [P]" encoder="mlp"; llama-adapter length=2',
        {"use_cache": False},
    ),
    ("gpt2", "ia3; ssf on q; dora r=2 on v; deep prompts length=2; loreft r=2 last=2", {"use_cache": False}),
    ("mixtral", "dora r=2 on up, down", {"use_cache": False}),
    ("bert", "pfeiffer adapters; parallel adapters; gated prefix length=2; train norm", {}),
]
"""Models and specs that have every wiring among them, with what forward is given besides."""


def test_every_wiring_is_among_them() -> None:
    plans = [pc.plan(zoo.build(name), sentence) for name, sentence, _ in SPECS]
    found = {insertion.wiring for plan in plans for insertion in plan.insertions}
    # What a router decides about is compiled in test_routed.py.
    assert found == set(Wiring) - {Wiring.ROUTED}


@pytest.mark.parametrize(("name", "sentence", "extra"), SPECS)
def test_it_is_one_graph_for_every_size(name: str, sentence: str, extra: dict[str, bool]) -> None:
    model = zoo.build(name)
    if name == "mixtral":
        # The grouped product that transformers takes by default cannot be compiled in float32.
        model.set_experts_implementation("batched_mm")
    tuned = pc.compile(model, sentence)
    stir(tuned)
    torch._dynamo.reset()
    whole = torch.compile(tuned, backend="eager", fullgraph=True, dynamic=True)
    with torch.no_grad():
        tuned(**zoo.inputs(name), **extra)  # a signature is traced when first met, outside compiled code
        for size in ((2, 7), (3, 11)):
            inputs = {**zoo.inputs(name, *size), **extra}
            torch.testing.assert_close(main_output(whole(**inputs)), main_output(tuned(**inputs)))
