"""Which ops are a softmax, said as one or spelt out."""

from torch import fx

from peft_compiler.analysis.ops import argument, kind, tensors


def is_softmax(node: fx.Node) -> bool:
    """Whether `node` is a softmax, or the last op of one that is spelt out as exp(x - logsumexp(x))."""
    return kind(node) == "softmax" or _logsumexp(node) is not None


def axis_of(node: fx.Node) -> int:
    """Returns the axis that a softmax runs over, the last one where that is not told by a number."""
    axis = argument(_logsumexp(node) or node, 1, "dim")
    return axis if isinstance(axis, int) else -1


def _logsumexp(node: fx.Node) -> fx.Node | None:
    """Returns what the logits are lowered by before `node`, where that is the logarithm of their sum."""
    operands = [source for lowered in tensors(node)[:1] for source in tensors(lowered)]
    if kind(node) != "exp" or len(operands) != 2 or kind(tensors(node)[0]) != "sub":
        return None
    logits, lowered_by = operands
    is_own = kind(lowered_by) == "logsumexp" and tensors(lowered_by)[0] is logits
    return lowered_by if is_own else None
