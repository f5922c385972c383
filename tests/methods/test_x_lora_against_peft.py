"""X-LoRA beside peft's, in one process: equal outputs, and equal gradients of the router and the LoRAs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import peft
import pytest
import torch
from torch import Tensor, nn

import peft_compiler as pc
from peft_compiler.lowering.compilation import compilation_of
from tests import zoo
from tests.methods.peft_oracle import by_peft

NAMES = ("first", "second", "third")
R, ALPHA = 3, 6.0


class Pair(NamedTuple):
    """A part of one of our tensors, and the part of one of peft's that is the same."""

    ours: Tensor
    mine: Any
    theirs: Tensor
    other: Any


def by_peft_from_files(base: nn.Module, targets: list[str], folder: Path, settings: dict[str, Any]) -> Any:
    """Returns peft's mixture of LoRAs that it saved before; it knows no other way."""
    base.config.use_cache = False
    for name in NAMES:
        lora = peft.LoraConfig(r=R, lora_alpha=ALPHA, target_modules=targets, task_type="CAUSAL_LM")
        by_peft(base, lora).save_pretrained(folder / name)
    adapters = {str(index): str(folder / name) for index, name in enumerate(NAMES)}
    kind = {"task_type": "CAUSAL_LM", "hidden_size": zoo.HIDDEN, "adapters": adapters}
    return by_peft(base, peft.XLoraConfig(**kind, **settings))


def pairs(ours: nn.Module, theirs: Any) -> Iterator[Pair]:
    """Yields everything that one of the two has and the other must have too."""
    inner = theirs.base_model.lora_model.model
    layers = {name: module for name, module in inner.named_modules() if hasattr(module, "lora_A")}
    head = [
        layer for layer in theirs.base_model.internal_xlora_classifier.layers if isinstance(layer, nn.Linear)
    ]
    insertions = {insertion.site.path: insertion for insertion in compilation_of(ours).plan.insertions}
    assert set(insertions) == set(layers)
    everything = slice(None)
    for number, (path, layer) in enumerate(layers.items()):
        module = ours.get_submodule(insertions[path].path)
        for index in range(len(NAMES)):
            yield Pair(module.loras.down, index, layer.lora_A[str(index)].weight, everything)
            yield Pair(module.loras.up, index, layer.lora_B[str(index)].weight, everything)
        if isinstance(module.score, nn.Linear):
            rows = slice(number * len(NAMES), (number + 1) * len(NAMES))
            yield Pair(module.score.weight, everything, head[-1].weight, rows)
            yield Pair(module.score.bias, everything, head[-1].bias, rows)
    for mine, other in zip(
        (each for each in module.router.layers if isinstance(each, nn.Linear)), head, strict=False
    ):
        yield Pair(mine.weight, everything, other.weight, everything)
        yield Pair(mine.bias, everything, other.bias, everything)


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "each place its own": ("", {"layerwise_scalings": True}),
    "one for all places": ("layerwise=false", {}),
    "deep": ("depth=3 width=12", {"layerwise_scalings": True, "xlora_depth": 3, "xlora_size": 12}),
    "deep, one for all": ("depth=2 width=12 layerwise=false", {"xlora_depth": 2, "xlora_size": 12}),
    "temperature and weight": (
        "temperature=0.5 weight=3",
        {"layerwise_scalings": True, "softmax_temperature": 0.5, "global_scaling_weight": 3.0},
    ),
    "sparse": ("top_k=2", {"layerwise_scalings": True, "top_k_lora": 2}),
    "softmax of the sparse": (
        "top_k=2 softmax=top_k",
        {"layerwise_scalings": True, "top_k_lora": 2, "enable_softmax": False, "enable_softmax_topk": True},
    ),
    "no softmax": ("softmax=off", {"layerwise_scalings": True, "enable_softmax": False}),
    "a first run with LoRAs": ("scaling_pass=0.5", {"layerwise_scalings": True, "scaling_pass_value": 0.5}),
    "trained LoRAs": (
        "train_adapters=true scaling_pass=0.5",
        {"layerwise_scalings": True, "use_trainable_adapters": True, "scaling_pass_value": 0.5},
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("name", "roles", "targets"), [("llama", "q,v", ["q_proj", "v_proj"])])
def test_it_is_pefts(case: str, name: str, roles: str, targets: list[str], tmp_path: Path) -> None:
    words, settings = CASES[case]
    base = zoo.build(name)
    spec = f"x-lora r={R} alpha={ALPHA} adapters=[{', '.join(NAMES)}] {words} on {roles}"
    ours = pc.compile(base, spec, zoo.inputs(name))
    theirs = by_peft_from_files(base, targets, tmp_path, settings)
    draws = torch.Generator().manual_seed(0)
    same = list(pairs(ours, theirs))
    with torch.no_grad():
        for pair in same:
            values = torch.randn(pair.ours[pair.mine].shape, generator=draws) * 0.3
            pair.ours[pair.mine], pair.theirs[pair.other] = values, values
    logits = [model(**zoo.inputs(name)).logits for model in (ours, theirs)]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)
    assert (logits[0] - base(**zoo.inputs(name)).logits).abs().max() > 1e-2
    for output in logits:
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    trained = [pair for pair in same if pair.ours.requires_grad]
    assert {id(pair.theirs) for pair in trained} == {id(p) for p in theirs.parameters() if p.requires_grad}
    for pair in trained:
        assert pair.ours.grad is not None
        assert pair.theirs.grad is not None
        assert pair.ours.grad.any()
        mine, other = pair.ours.grad[pair.mine], pair.theirs.grad[pair.other]
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)
