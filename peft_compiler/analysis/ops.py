"""The vocabulary of torch ops, by what they do to the data that flows through them."""

from typing import Any

from torch import fx

from peft_compiler.analysis.meta_mode import is_real_type
from peft_compiler.analysis.module_graph import fact

_SAME = {
    "iadd": "add",
    "radd": "add",
    "imul": "mul",
    "rmul": "mul",
    "multiply": "mul",
    "concat": "cat",
    "concatenate": "cat",
    "flex_attention": "scaled_dot_product_attention",
}

CONVOLUTIONS = frozenset(
    {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
)
CONTRACTIONS = CONVOLUTIONS | {
    "linear", "addmm", "matmul", "rmatmul", "mm", "bmm", "baddbmm", "addbmm", "einsum", "mv", "inner",
    "bilinear", "tensordot", "grouped_mm",
}  # fmt: skip
"""Ops that sum over an axis that two operands share."""

ATTENTION = "scaled_dot_product_attention"

SELECTIONS = frozenset({"embedding", "getitem", "index_select", "gather", "take", "take_along_dim", "index"})
"""Ops whose first tensor is data and whose others say which of it."""

CASTS = frozenset(
    {
        "to",
        "float",
        "half",
        "bfloat16",
        "double",
        "type",
        "type_as",
        "clone",
        "contiguous",
        "detach",
        "dropout",
    }
)
"""Ops that change no value, or none in eval mode."""

SHAPES = frozenset(
    {
        "view", "reshape", "permute", "transpose", "split", "chunk", "getitem", "unbind", "unsqueeze",
        "squeeze", "expand", "repeat", "repeat_interleave", "cat", "stack", "flatten", "unflatten",
        "movedim", "view_as", "expand_as", "narrow", "select", "tensor_split", "roll", "flip", "pad", "T",
        "mT", "swapaxes", "swapdims", "t", "moveaxis", "hsplit", "vsplit", "tile", "reshape_as",
        "split_with_sizes", "unfold", "index_select", "broadcast_to", "ravel", "output", "contiguous",
        "view_as_complex", "view_as_real", "unsafe_chunk", "unsafe_split",
    }
)  # fmt: skip
"""Ops that move elements and compute nothing."""

PARTS = frozenset(
    {
        "split", "chunk", "getitem", "unbind", "narrow", "select", "tensor_split", "hsplit", "vsplit",
        "split_with_sizes", "index_select", "unsafe_chunk", "unsafe_split", "setitem", "copy", "take",
        "gather", "unfold", "unflatten",
    }
)  # fmt: skip
"""Ops after which some of the data may be missing."""

CREATIONS = frozenset(
    {
        "new_empty", "new_zeros", "new_full", "new_ones", "new_tensor", "zeros_like", "empty_like",
        "full_like", "ones_like", "empty", "zeros", "full", "ones", "rand_like", "randn_like",
    }
)  # fmt: skip
"""Ops that read no more of a tensor than its shape."""

NONLINEARITIES = frozenset(
    {
        "gelu", "silu", "relu", "tanh", "sigmoid", "erf", "mish", "elu", "selu", "celu", "leaky_relu",
        "softplus", "hardswish", "hardtanh", "relu6", "prelu", "softsign", "hardsigmoid", "rrelu",
        "logsigmoid", "log_sigmoid", "glu", "threshold", "square", "clamp_min", "expm1", "minimum", "pow",
        "log1p", "logaddexp", "where",
    }
)  # fmt: skip
"""Ops that a feed-forward layer may have between its two projections."""

MIXES = CONVOLUTIONS | {
    ATTENTION, "softmax", "exp", "maximum", "cumsum", "cumprod", "logcumsumexp", "lstm", "gru", "rnn_tanh",
    "roll", "setitem", "stack", "avg_pool1d", "avg_pool2d", "max_pool2d", "adaptive_avg_pool1d", "fft",
    "fft_fft", "fft_rfft", "fft_irfft", "unfold", "fold", "tril", "sort", "as_strided", "interpolate",
    "after_write",
}  # fmt: skip
"""Ops by which a token may learn of others."""

CHANNEL_NORMS = frozenset({"group_norm", "batch_norm", "instance_norm"})
"""Ops that normalise channels, which are the second axis."""

NORMS = CHANNEL_NORMS | {"layer_norm", "rms_norm", "native_layer_norm"}
"""Ops that normalise in one go."""


def kind(node: fx.Node) -> str:
    """Returns the name of a node's op, the same for its in-place and private variants."""
    name = fact(node).op.strip("_")
    return _SAME.get(name, name)


def argument(node: fx.Node, position: int, *names: str) -> Any:
    """Returns an argument of a node's op by position or by any of its names, or None."""
    if len(node.args) > position:
        return node.args[position]
    return next((node.kwargs[name] for name in names if name in node.kwargs), None)


def tensors(node: fx.Node) -> list[fx.Node]:
    """Returns the tensor arguments of a node's op in order, an operand used twice twice."""
    found: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), found.append)
    return found


def selected(node: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
    """Returns what a selection picks from, and the indices that say what."""
    first, *others = tensors(node)
    # F.embedding takes the indices first, unlike torch.embedding and everything else.
    if kind(node) == "embedding" and others and is_real_type(fact(first).dtype):
        return others[0], [first]
    return first, others
