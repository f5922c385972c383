"""Which axis of an activation counts the examples of a batch."""

from math import prod

from torch import fx

from peft_compiler.analysis.module_graph import ModuleGraph, fact


def find_batch_axis(graph: ModuleGraph, value: fx.Node) -> int | None:
    """Returns the axis of a value (..., width) that is as long as the batch; None where that proves nothing.

    The first axis is trusted if no other one is as long. A later one, as in (positions, batch,
    width), is trusted if no other one could hold the batch flattened into it.
    """
    batches = {fact(node).shape[0] if fact(node).shape else None for node in graph.inputs.values()}
    axes = fact(value).shape[:-1]
    if len(batches) != 1 or len(axes) < 2:
        return None
    (batch,) = batches
    if batch is None or axes.count(batch) != 1:
        return None
    found = axes.index(batch)
    others = (length for axis, length in enumerate(axes) if axis != found)
    return None if found > 0 and any(length % batch == 0 for length in others) else found


def has_one_context_an_example(context: fx.Node, heads: tuple[int, int], batch: int) -> bool:
    """Whether an attention averages over whole examples, rather than over windows of them.

    Its result is (..., queries, width), with the heads, or the heads of the keys, in front.
    """
    return prod(fact(context).shape[:-2]) in {batch * each for each in heads}
