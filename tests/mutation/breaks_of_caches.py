"""Breaks of what is promised of caches, whichever their class."""

from tests.mutation.mutant import Mutant

_HIDDEN = "lowering/test_hidden_positions.py"
_INPUT = "lowering/test_extend_input.py"

CACHES = (
    Mutant(
        "a cache of a fixed size is one while the tower runs",
        "lowering/hidden_positions.py",
        "return not self.hidden and bool(super().is_compileable)  # pyright: ignore",
        "return False",
        f"{_INPUT}::test_generating_with_a_cache_equals_generating_by_hand",
    ),
    Mutant(
        "no masks are made in advance that would not count hidden positions",
        "lowering/hidden_positions.py",
        "return not self.hidden and bool(super().is_compileable)  # pyright: ignore",
        "return bool(super().is_compileable)  # pyright: ignore",
        f"{_INPUT}::test_generating_with_a_cache_equals_generating_by_hand",
    ),
    Mutant(
        "of several masks some may be none",
        "lowering/prompted_input.py",
        "return made if made is not None and made.dim() == 2 else dict(zip(mask, masks, strict=True))",
        "return masks[0] if masks[0].dim() == 2 else dict(zip(mask, masks, strict=True))",
        f"{_HIDDEN}::test_masks_by_the_kind_of_layer_may_be_none",
    ),
    Mutant(
        "a graph knows whether a cache counts in a tensor",
        "lowering/guards.py",
        "if isinstance(value, Tensor) is not is_tensor:",
        "if False:",
        "lowering/test_trace.py::test_whether_a_cache_counts_in_a_tensor_is_guarded",
    ),
)
