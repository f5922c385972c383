"""What flows where: activations, what derives from parameters alone, and indices."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx

from peft_compiler.analysis.meta_mode import is_real_type
from peft_compiler.analysis.module_graph import ModuleGraph, fact
from peft_compiler.analysis.ops import (
    CASTS,
    CONTRACTIONS,
    CREATIONS,
    SELECTIONS,
    SHAPES,
    kind,
    selected,
    tensors,
)

# Packed weights of quantised layers.
_PACKED = (torch.uint8, torch.int8)
_KEEP_INDICES = SHAPES | CASTS | {"long", "int", "clamp", "masked_fill", "where", "minimum"}


@dataclass(frozen=True, slots=True)
class Taint:
    """What each value of a graph derives from.

    Attributes:
        activations: Floats that depend on the model's inputs.
        bases: The parameters behind each value that derives from parameters and no activation.
        inputs: The model input that an index is, up to its shape, by name.
        routed: Integers that were computed from activations, such as the choice of experts.
    """

    activations: frozenset[fx.Node]
    bases: Mapping[fx.Node, frozenset[fx.Node]]
    inputs: Mapping[fx.Node, str]
    routed: frozenset[fx.Node]


def find_taint(graph: ModuleGraph) -> Taint:
    """Returns what every value derives from, in one pass."""
    activations: set[fx.Node] = set()
    bases: dict[fx.Node, frozenset[fx.Node]] = {}
    inputs: dict[fx.Node, str] = {}
    from_inputs: set[fx.Node] = set()
    routed: set[fx.Node] = set()
    for name, node in graph.inputs.items():
        if is_real_type(fact(node).dtype):
            inputs[node] = name
            from_inputs.add(node)
        else:
            activations.add(node)
    for node in graph.parameters:
        if not is_real_type(fact(node).dtype) or fact(node).dtype in _PACKED:
            bases[node] = frozenset({node})
    for node in graph.nodes:
        if node.op != "call_function" or kind(node) in CREATIONS:
            continue
        data, indices = _data_and_indices(node)
        learned = [value for value in data if value in bases]
        active = any(value in activations for value in data)
        # A lookup by the model's inputs is where activations begin; one by routing picks a weight.
        looked_up = bool(learned) and any(index in from_inputs for index in indices)
        # So is a weight applied to a learned input, such as latent queries.
        matrices = [value for value in learned if len(fact(value).shape) > 1]
        learned_input = kind(node) in CONTRACTIONS and len(matrices) > 1
        if is_real_type(fact(node).dtype):
            if active or any(value in routed for value in data):
                routed.add(node)
            elif any(value in from_inputs for value in (*data, *indices)):
                from_inputs.add(node)
            names = [inputs[value] for value in data if value in inputs]
            if names and kind(node) in _KEEP_INDICES:
                inputs[node] = names[0]
        elif active or looked_up or learned_input:
            activations.add(node)
        elif learned:
            bases[node] = frozenset().union(*(bases[value] for value in learned))
    return Taint(frozenset(activations), bases, inputs, frozenset(routed))


def _data_and_indices(node: fx.Node) -> tuple[list[fx.Node], list[fx.Node]]:
    if kind(node) not in SELECTIONS:
        return tensors(node), []
    data, indices = selected(node)
    return [data], indices
