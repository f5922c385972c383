"""An op that a site names is found again in the graph of its own module, in every mode."""

from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import nn

from peft_compiler.analysis.find_sites import find_sites
from peft_compiler.lowering.trace import LocalTracer
from peft_compiler.site import Anchor
from tests.zoo import ALL, build, inputs


def anchors_by_module(model: nn.Module) -> dict[str, set[Anchor]]:
    found: dict[str, set[Anchor]] = defaultdict(set)
    for site in find_sites(model):
        anchor = getattr(site.place, "anchor", None)
        # Stacked experts are adapted on the parameter, whichever op reads it.
        if anchor is not None and site.experts is None:
            found[site.path].add(anchor)
    return found


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", ALL)
def test_anchors_hold_in_the_graph_of_the_module(name: str, training: bool) -> None:
    model = build(name)
    expected = anchors_by_module(model)
    traced: dict[str, set[Anchor]] = {}

    def trace(module: nn.Module, args: Any, kwargs: Any, path: str) -> None:
        graph = LocalTracer(module).trace(type(module).forward, args, kwargs)
        traced[path] = {node.meta["anchor"] for node in graph.nodes if "anchor" in node.meta}

    for path in expected:
        model.get_submodule(path).register_forward_pre_hook(
            lambda module, args, kwargs, path=path: trace(module, args, kwargs, path), with_kwargs=True
        )
    # Another batch size, length and mode than those of the capture.
    with torch.no_grad():
        model.train(training)(**inputs(name, batch=3, length=5))
    assert {path: anchors - traced[path] for path, anchors in expected.items()} == {
        path: set() for path in expected
    }
