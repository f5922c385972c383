"""Which module runs a stack of blocks, and which gives the states that come out of the last one."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from peft_compiler.analysis.module_graph import ModuleGraph, fact, parent
from peft_compiler.analysis.roles.blocks import Block, Blocks
from peft_compiler.analysis.roles.linears import Dataflow
from peft_compiler.site import Stack


@dataclass(frozen=True, slots=True)
class Stacks:
    """What is known of each stack, by the path that its blocks are listed at.

    Attributes:
        known: The stacks whose blocks give one vector for each position of a sequence.
        positions: How many sequences of how many positions each of them had in the run.
    """

    known: Mapping[str, Stack]
    positions: Mapping[str, tuple[int, int]]

    def around(self, block: Block | None, linear: fx.Node | None = None, axes: int = 1) -> Stack | None:
        """Returns the stack of a block, if a linear in there sees its positions one by one, in order.

        Args:
            block: The block.
            linear: The op, or None for what is no linear.
            axes: How many axes of what comes out of it hold features.
        """
        if block is None or block.stack not in self.known:
            return None
        batch, length = self.positions[block.stack]
        aligned = linear is None or fact(linear).shape[:-axes] in ((batch, length), (batch * length,))
        return self.known[block.stack] if aligned else None


def find_stacks(flow: Dataflow, blocks: Blocks, norms: Iterable[str]) -> Stacks:
    """Returns the stacks of a model.

    Args:
        flow: The ops.
        blocks: Every block.
        norms: Paths of the modules that normalise.
    """
    members: dict[str, list[str]] = {}
    for block in blocks.by_path.values():
        if flow.graph.calls.get(block.path):
            members.setdefault(block.stack, []).append(block.path)
    found: dict[str, Stack] = {}
    positions: dict[str, tuple[int, int]] = {}
    for stack, paths in members.items():
        last, outputs = max(((path, _outputs(flow, path)) for path in paths), key=lambda each: _end(each[1]))
        if outputs and len(fact(outputs[0]).shape) == 3:
            path = called_once(flow.graph, common_path(paths))
            returned = _returns_states(flow, path, outputs)
            if not (returned or blocks.by_path[last].is_whole):
                continue  # what the last part gives is no state yet
            states = path if returned else _norm(flow, norms, outputs) or last
            batch, length, width = fact(outputs[0]).shape
            found[stack], positions[stack] = Stack(path, states, width), (batch, length)
    return Stacks(found, positions)


def common_path(paths: Sequence[str]) -> str:
    """Returns the path of the innermost module around all of `paths`."""
    path = parent(paths[0])
    while path and not all(each.startswith(f"{path}.") for each in paths):
        path = parent(path)
    return path


def called_once(graph: ModuleGraph, path: str) -> str:
    """Returns the innermost module around `path`, or there, that ran, and ran once."""
    while path and len(graph.calls.get(path, ())) != 1:
        path = parent(path)
    return path


def _outputs(flow: Dataflow, path: str) -> list[fx.Node]:
    """Returns the activations that the last call of a module gave."""
    return [node for node in flow.graph.calls[path][-1].outputs if node in flow.taint.activations]


def _end(outputs: Sequence[fx.Node]) -> int:
    return fact(outputs[0]).order if outputs else -1


def _returns_states(flow: Dataflow, path: str, outputs: Sequence[fx.Node]) -> bool:
    """Whether the first thing that a module returns comes from `outputs` by no weight, in their shape."""
    returned = _outputs(flow, path)
    if not returned or fact(returned[0]).shape != fact(outputs[0]).shape:
        return False
    todo, seen = [returned[0]], set[fx.Node]()
    while todo:
        node = todo.pop()
        if node in outputs:
            return True
        if node not in seen and node not in flow.linears and fact(node).order > _end(outputs):
            seen.add(node)
            todo.extend(flow.active_inputs.get(node, ()))
    return False


def _norm(flow: Dataflow, norms: Iterable[str], outputs: Sequence[fx.Node]) -> str | None:
    """Returns the path of the norm that `outputs` go into, where it does nothing else in a run."""
    for path in norms:
        calls = flow.graph.calls[path]
        if len(calls) == 1 and calls[0].inputs[0] in outputs:
            return path
    return None
