"""`ModuleGraph`: everything that one run of a model showed, as frozen data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from peft_compiler.site import Anchor

if TYPE_CHECKING:
    import networkx as nx


@dataclass(frozen=True, slots=True)
class Fact:
    """What is known of one value of the graph. A node is an op and the one tensor that it made.

    Attributes:
        order: Position among all nodes, in order of execution.
        op: Name of the op as in `Anchor`, `"input"` or `"parameter"`.
        shape: Shape of the tensor.
        dtype: Its type.
        module: Path of the innermost module that ran.
        anchor: Finds the op again in the module's own graph; None for inputs and parameters.
    """

    order: int
    op: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    module: str
    anchor: Anchor | None = None


def fact(node: fx.Node) -> Fact:
    """Returns what capture noted about `node`."""
    return node.meta["fact"]


@dataclass(frozen=True, slots=True)
class ModuleFact:
    """What is known of one module.

    Attributes:
        type: Name of its class.
        children: Names of its children, in order.
        is_collection: Whether it only lists its children: a ModuleList, ModuleDict or Sequential.
        parameters: Names of the parameters that it holds itself.
        size: How many numbers its parameters hold, those of its children included.
    """

    type: str
    children: tuple[str, ...]
    is_collection: bool
    parameters: tuple[str, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a module.

    Attributes:
        inputs: The tensors that went in.
        outputs: The tensors that came out.
        returns_tensor: Whether it returned one tensor, with nothing around it.
    """

    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    returns_tensor: bool


@dataclass(frozen=True)
class ModuleGraph:
    """The ops of one run, and the tree of modules that they stand in.

    Attributes:
        graph: One node a tensor, in order of execution; each has a `fact`.
        modules: Every module by path; the model itself is `""`.
        parameters: Names of each parameter or buffer that was used, all of them where it is tied.
        inputs: Tensors that the model was called with, by name.
        outputs: Tensors that it returned, by where they are in the output.
        left: The computed ones of these, and those that the run left in a cache, a buffer or an input.
        calls: Every call of each module that ran, by path, in order.
        faked: How many values were made up because they depend on data that is not there.
        example: What the model was called with: positional arguments, and others by name.
        quantised: Names of the parameters and buffers that the model keeps as codes.
    """

    graph: fx.Graph
    modules: Mapping[str, ModuleFact]
    parameters: Mapping[fx.Node, tuple[str, ...]]
    inputs: Mapping[str, fx.Node]
    outputs: Mapping[str, fx.Node]
    left: frozenset[fx.Node]
    calls: Mapping[str, tuple[Call, ...]]
    faked: int
    example: tuple[tuple[Any, ...], Mapping[str, Any]]
    quantised: frozenset[str] = frozenset()

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """Every value, in order of execution."""
        return tuple(node for node in self.graph.nodes if node.op != "output")

    def __str__(self) -> str:
        lines = (_line(node) for node in self.nodes if node.op == "call_function")
        return "\n".join(lines)

    def network(self) -> "nx.DiGraph[str]":
        """Returns the flow of data, for algorithms on graphs and for drawing; nodes carry their facts."""
        # Loaded when it is used: that takes longer than the capture of a model of 8 billion parameters.
        import networkx as nx

        network: nx.DiGraph[str] = nx.DiGraph()
        for node in self.nodes:
            network.add_node(node.name, fact=fact(node))
            network.add_edges_from((source.name, node.name) for source in node.all_input_nodes)
        return network


def _line(node: fx.Node) -> str:
    known = fact(node)
    sources = ", ".join(source.name for source in node.all_input_nodes)
    return f"{node.name} = {known.op}({sources})  # {list(known.shape)} in {known.module or 'the model'}"


def parent(path: str) -> str:
    """Returns the path of the module that holds the one at `path`.

    >>> parent("layers.0.attention"), parent("layers")
    ('layers.0', '')
    """
    return path.rpartition(".")[0]
