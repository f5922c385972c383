"""Rows that hold several sequences, one behind another: refused where an insertion goes by rows.

Continuous batching (`generate_batch`) and training without padding make such rows. What changes each
token alone, or joins every attention, fits them; what counts positions or goes in front of a row does not.
Names of arguments are those of transformers' forwards.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from peft_compiler.errors import LoweringError

BORDERS = "cu_seq_lens_q"
"""What forwards call the borders between the sequences of a row."""


def expect_one_in_each_row(arguments: Mapping[str, Any], what: str) -> None:
    """Checks that every row of a call holds one sequence.

    Args:
        arguments: The arguments by name.
        what: What goes by rows, for the message.

    Raises:
        LoweringError: If the call tells borders within rows, or positions that begin anew.
    """
    found = f"'{BORDERS}'" if arguments.get(BORDERS) is not None else None
    if found is None and _begin_anew(arguments):
        found = "'position_ids' that begin anew within a row, and no mask"
    if found is not None:
        raise LoweringError(
            f"{what}, and a call came with {found}: a row holds several sequences, one behind another; "
            "expected one in each row: use generate() rather than generate_batch(), and train with padding"
        )


def _begin_anew(arguments: Mapping[str, Any]) -> bool:
    """Whether transformers takes the rows for packed ones by their positions. Compiled code does not look."""
    positions: Any = arguments.get("position_ids")
    if torch.compiler.is_compiling() or arguments.get("attention_mask") is not None:
        return False
    is_plain = isinstance(positions, Tensor) and positions.dim() == 2 and not positions.is_meta
    return is_plain and bool((positions.diff(dim=-1) != 1).any())
