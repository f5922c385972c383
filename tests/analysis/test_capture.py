"""Capture sees every op, and leaves no trace in the model."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peft_compiler.analysis.capture import capture
from peft_compiler.analysis.module_graph import fact
from peft_compiler.errors import CaptureError
from tests.zoo import build, inputs


def everything(model: nn.Module) -> dict[str, Any]:
    """What capture may not change, by name."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        "addresses": [(name, tensor.data_ptr(), tensor._version) for name, tensor in tensors],
        "values": [
            (name, tensor.clone().double().sum().item(), tensor.requires_grad) for name, tensor in tensors
        ],
        "gradients": [tensor.grad is None for _, tensor in tensors],
        "training": [module.training for module in model.modules()],
        "hooks": [
            (list(module._forward_hooks), list(module._forward_pre_hooks)) for module in model.modules()
        ],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "classes": [type(module) for module in model.modules()],
        "config": model.config.to_dict() if hasattr(model, "config") else None,
        "attention": getattr(getattr(model, "config", None), "_attn_implementation", None),
        "experts": getattr(getattr(model, "config", None), "_experts_implementation", None),
        "random": (torch.random.get_rng_state().tolist(), random.getstate()),
        "modes": (torch.is_grad_enabled(), torch.get_default_dtype()),
    }


class Broken(nn.Module):
    """Fails half-way, after it has drawn a random number."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        torch.rand(())
        return self.inner(x) @ torch.ones(5, 5)


@pytest.mark.parametrize("name", ["gpt2", "mixtral", "bert", "t5", "torch_encoder", "handmade"])
def test_the_model_stays_as_it_was(name: str) -> None:
    model = build(name).train()
    model.register_forward_hook(lambda *_: None)
    next(iter(model.children())).eval()
    before = everything(model)
    capture(model)
    assert everything(model) == before


def test_the_model_stays_as_it_was_after_an_error() -> None:
    model = Broken().train()
    before = everything(model)
    with pytest.raises(CaptureError):
        capture(model)
    assert everything(model) == before


def test_inputs_stay_as_they_were() -> None:
    given = inputs("gpt2")
    kept = {name: tensor.clone() for name, tensor in given.items()}
    capture(build("gpt2"), given)
    assert set(given) == set(kept)
    assert all(torch.equal(given[name], kept[name]) for name in kept)


def test_weights_are_not_copied() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    # Forty gigabytes, if anything were to make a copy.
    model[0].weight = nn.Parameter(torch.zeros(()).expand(100_000, 100_000), requires_grad=False)
    model[0].bias = None
    graph = capture(model, torch.ones(1, 100_000))
    assert fact(graph.outputs[""]).shape == (1, 100_000)


@pytest.mark.parametrize(
    "given",
    [{"src": torch.ones(2, 5, 32)}, (torch.ones(2, 5, 32),), torch.ones(2, 5, 32)],
    ids=["dict", "tuple", "tensor"],
)
def test_every_form_of_inputs(given: Any) -> None:
    graph = capture(build("torch_encoder"), given)
    assert list(graph.inputs) == ["src"]
    assert fact(graph.outputs[""]).shape == (2, 5, 32)


def test_a_model_without_weights_gives_the_same_graph() -> None:
    with torch.device("meta"):
        bare = build("llama")
    assert str(capture(bare)) == str(capture(build("llama")))


def test_a_graph_can_be_read(golden: Callable[[str, str], None]) -> None:
    golden("analysis/handmade_graph.txt", str(capture(build("handmade"))))


def test_nodes_tell_the_module_and_the_instructions() -> None:
    graph = capture(build("handmade"))
    adds = [fact(node) for node in graph.nodes if fact(node).op == "add"]
    assert [add.module for add in adds] == ["blocks.0", "blocks.0", "blocks.1", "blocks.1"]
    first, second, *others = [add.anchor for add in adds]
    assert others == [first, second]  # the same source, so the same anchors in every block
    assert first != second


def test_ops_of_a_loop_are_counted() -> None:
    class Loop(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = x + 1
            return x

    graph = capture(Loop(), torch.ones(2))
    assert [fact(node).anchor.occurrence for node in graph.nodes[1:]] == [0, 1, 2]


def test_a_write_through_a_view_is_seen() -> None:
    class Write(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out = torch.zeros(2, 4)
            out[:, :2].copy_(x)
            return out * 2

    graph = capture(Write(), torch.ones(2, 2))
    assert "x" in {node.name for node in _ancestors(graph.outputs[""])}


def _ancestors(node: Any) -> set[Any]:
    found = {node}
    for source in node.all_input_nodes:
        found |= _ancestors(source)
    return found


def test_reads_of_missing_data_are_counted() -> None:
    class Peek(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.sum() > 0 else x

    assert capture(Peek(), torch.ones(2)).faked == 1
    assert capture(build("llama")).faked == 0


def test_the_flow_of_data_is_a_network() -> None:
    graph = capture(build("handmade"))
    network = graph.network()
    assert len(network) == len(graph.nodes)
    (source,) = graph.inputs.values()
    (sink,) = graph.outputs.values()
    assert sink.name in _reachable(network, source.name)


def _reachable(network: Any, start: str) -> set[str]:
    seen, stack = {start}, [start]
    while stack:
        new = set(network.successors(stack.pop())) - seen
        seen |= new
        stack.extend(new)
    return seen


def test_bad_example_inputs_are_explained() -> None:
    with pytest.raises(CaptureError) as caught:
        capture(nn.Linear(4, 4), torch.ones(2, 5))
    assert str(caught.value) == (
        "Linear cannot be run on the example inputs\n"
        "  passed float32[2, 5]\n"
        "  RuntimeError: a and b must have same reduction dim, but got [2, 5] X [4, 4].\n"
        "  check them with model(**example_inputs)"
    )


def test_a_model_that_runs_on_nothing_is_explained() -> None:
    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("never")

    with pytest.raises(CaptureError) as caught:
        capture(Picky())
    assert str(caught.value) == (
        "Picky cannot be run on inputs derived from its forward and config\n"
        "  tried x=float32[2, 7, 3]: ValueError: never\n"
        "  pass example_inputs, a dict of arguments"
    )
