"""Values of which each process has a part, in the local graph of a host whose weights are spread.

Inserted modules know whole values, so that every process computes the same of the same parameters and
has the same gradients. `torch.distributed` gathers what enters them and takes the own part of what
leaves them; backwards, it is the other way round.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.fx import Graph, Node

from peft_compiler.copies import PLANNED
from peft_compiler.lowering.anchored import anchored
from peft_compiler.lowering.edit import Edit
from peft_compiler.spread import is_spread, spread_like, whole_of

OUT, IN = 0, 1
"""Axes of a weight (out, in): which of its features a value has."""


def gathered(graph: Graph, edit: Edit, value: Node, axis: int) -> Node:
    """Returns all of what enters, or leaves, the place of an edit."""
    return _call_if_parted(graph, edit, whole, value, axis)


def own(graph: Graph, edit: Edit, value: Node, axis: int) -> Node:
    """Returns what of a whole value this process has where it enters, or leaves, the place of an edit."""
    return _call_if_parted(graph, edit, own_part, value, axis)


def own_prompts(graph: Graph, edit: Edit, prompts: Node) -> Node:
    """Returns those of the keys and values of prompts that belong to this process's heads."""
    if edit.spread is None or edit.spread.weight is None:
        return prompts
    return graph.call_function(own_heads, (prompts, graph.get_attr(edit.spread.weight)))


def own_gates(graph: Graph, edit: Edit, gates: Node) -> Node:
    """Returns the gates of this process's heads."""
    if edit.spread is None or edit.spread.weight is None:
        return gates
    return graph.call_function(own_part, (gates, graph.get_attr(edit.spread.weight)))


def with_own_weight(graph: Graph, name: str, adapt: Callable[[Node], Node]) -> None:
    """Lets the host be called with what `adapt` makes of its whole weight; the plan goes on as ever."""
    host = anchored(graph, None)
    with graph.inserting_before(host):
        if host.target is by_plan:
            weight = graph.call_function(whole_of, (graph.get_attr(name),))
            host.target = by_plan_with
            host.args = (host.args[0], name, weight, *host.args[1:])
        itself, _, weight, *others = host.args
        assert isinstance(weight, Node)
        host.args = (itself, name, adapt(weight), *others)


def whole(part: Tensor, weight: DTensor, axis: int) -> Tensor:
    """Returns a value (..., d) of which this process has a part; d is the size of the weight's axis."""
    shape = torch.Size((*part.shape[:-1], weight.shape[axis]))
    stride = part.new_empty(shape, device="meta").stride()
    placements = [Shard(part.dim() - 1)]
    spread = DTensor.from_local(
        part, weight.device_mesh, placements, run_check=False, shape=shape, stride=stride
    )
    return spread.full_tensor(grad_placements=[Replicate()])


def own_part(value: Tensor, weight: DTensor, axis: int = -1) -> Tensor:
    """Returns this process's part of a value, in its last axis, or in `axis`."""
    everywhere = DTensor.from_local(value, weight.device_mesh, [Replicate()], run_check=False)
    return everywhere.redistribute(placements=[Shard(axis % value.dim())]).to_local()


def of_all_processes(vectors: Tensor, processes: DeviceMesh) -> Tensor:
    """Returns the vectors (batch, ..., d) of all processes, one batch after another."""
    spread = DTensor.from_local(vectors, processes, [Shard(0)], run_check=False)
    return spread.full_tensor(grad_placements=[Replicate()])


def of_this_process(vectors: Tensor, processes: DeviceMesh) -> Tensor:
    """Returns those of this process, of what `of_all_processes` gives."""
    everywhere = DTensor.from_local(vectors, processes, [Replicate()], run_check=False)
    return everywhere.redistribute(placements=[Shard(0)]).to_local()


def own_heads(values: tuple[Tensor, ...], weight: DTensor) -> tuple[Tensor, ...]:
    """Returns this process's heads of keys and values, each (..., heads, n, width)."""
    return tuple(own_part(value, weight, -3) for value in values)


def all_heads(values: tuple[Tensor, ...], weight: Tensor) -> tuple[Tensor, ...]:
    """Returns keys and values (heads, n, width) of all heads, of which this process has as many as others."""
    assert is_spread(weight)
    return tuple(
        DTensor.from_local(value, weight.device_mesh, [Shard(0)], run_check=False).full_tensor()
        for value in values
    )


def by_plan(host: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Calls the forward that a `tp_plan` put on the host."""
    return host.__dict__[PLANNED](*args, **kwargs)


def by_plan_with(host: nn.Module, name: str, weight: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Calls it with `weight`, which every process has whole, in place of the parameter of that name."""
    parameters: dict[str, Any] = host.__dict__["_parameters"]
    parameter = parameters[name]
    parameters[name] = spread_like(weight, parameter)
    try:
        return by_plan(host, *args, **kwargs)
    finally:
        parameters[name] = parameter


def _among(function: Callable[[Tensor, DeviceMesh], Tensor], processes: Any) -> Callable[[Tensor], Tensor]:
    """Returns a function of vectors alone, under a name that generated code can call it by."""

    def among(vectors: Tensor) -> Tensor:
        return function(vectors, processes)

    among.__name__ = among.__qualname__ = function.__name__
    return among


def _call_if_parted(graph: Graph, edit: Edit, function: Any, value: Node, axis: int) -> Node:
    spread = edit.spread
    if spread is None or not (spread.enters if axis == IN else spread.leaves):
        return value
    if spread.weight is None:
        function = of_all_processes if function is whole else of_this_process
        return graph.call_function(_among(function, spread.processes), (value,))
    arguments = (value, graph.get_attr(spread.weight))
    return graph.call_function(function, (*arguments, axis) if function is whole else arguments)
