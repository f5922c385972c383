"""The mask that a block is given, from which padding is known.

Names of arguments are those of transformers' blocks, and of torch's.
"""

import torch
from torch.fx import Graph, Node

from peft_compiler.errors import LoweringError
from peft_compiler.lowering.packed import BORDERS, expect_one_in_each_row

SAYS_WHAT_IS_SEEN = ("attention_mask",)
SAYS_WHAT_IS_HIDDEN = ("src_key_padding_mask", "tgt_key_padding_mask")


def mask_given(graph: Graph) -> Node | None:
    """Returns the mask among the arguments of a call; None without one, where nothing is padding.

    Booleans in it are true where a key is seen.

    Raises:
        LoweringError: If the mask is no tensor, or a row holds several sequences.
    """
    given = {str(node.target): node for node in graph.nodes if node.op == "placeholder"}
    borders = {name: node for name, node in given.items() if name == BORDERS and "shape" in node.meta}
    expect_one_in_each_row(borders, "the first and last tokens are told by rows")
    mask = next((given[name] for name in (*SAYS_WHAT_IS_SEEN, *SAYS_WHAT_IS_HIDDEN) if name in given), None)
    if mask is None:
        return None
    if "shape" not in mask.meta:
        raise LoweringError(
            f"the first and last tokens are told by '{mask.target}', which is no tensor here; "
            "take the attention implementation 'sdpa' or 'eager', or edit every position"
        )
    if mask.target in SAYS_WHAT_IS_HIDDEN and mask.meta["dtype"] == torch.bool:
        with graph.inserting_after(mask):
            mask = graph.call_function(torch.logical_not, (mask,))
    return mask
