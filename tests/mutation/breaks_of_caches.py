"""Breaks of what is promised of caches, whichever their class."""

from tests.mutation.mutant import Mutant

_HIDDEN = "lowering/test_hidden_positions.py"
_PADDED = "lowering/test_behind_padding.py"
_PACKED = "lowering/test_packed.py"
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
        "lowering/prompted_mask.py",
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
    Mutant(
        "a padded row has its prompts next to its tokens",
        "lowering/prompted_calls.py",
        "behind = standing is Standing.BEHIND or (told and standing is Standing.AS_TOLD)",
        "behind = False",
        f"{_PADDED}::test_it_continues_as_it_does_alone",
    ),
    Mutant(
        "rows of a cache are picked with their padding",
        "lowering/hidden_positions.py",
        "self.padding = rows(self.padding)",
        "rows(self.padding)",
        f"{_PADDED}::test_rows_of_a_cache_are_picked_with_their_padding",
    ),
    Mutant(
        "a cache that the forward made knows of padding",
        "lowering/prompted_input.py",
        "note_padding(cache, left_padding(arguments, standing))\n    if cache is not None:",
        "note_padding(cache, None)\n    if cache is not None:",
        f"{_PADDED}::test_a_cache_that_the_forward_made_knows_of_padding",
    ),
    Mutant(
        "attention maps of a window are as long as the base's",
        "lowering/prompted_calls.py",
        "max(0, int(call.keys) - found)",
        "0",
        f"{_PADDED}::test_attention_maps_are_as_long_as_the_base_s",
    ),
    Mutant(
        "masks by the kind of layer have a row for each member",
        "lowering/ensembles.py",
        "if type(value) is dict:",
        "if False:",
        f"{_PADDED}::test_it_continues_as_it_does_alone",
    ),
    Mutant(
        "arranging rows makes no graph for each length",
        "lowering/behind_padding.py",
        "return values.expand(whole).gather(axis, positions.view(shape).to(values.device).expand(taken))",
        "return torch.take_along_dim(values, positions.view(shape), axis)",
        f"{_PADDED}::test_it_is_one_graph_for_every_length",
    ),
    Mutant(
        "where no positions can be told, prompts stand behind padding",
        "lowering/extend_input.py",
        "return Standing.AS_TOLD if POSITIONS in accepted else Standing.BEHIND",
        "return Standing.AS_TOLD",
        f"{_PADDED}::test_it_continues_so_where_no_positions_can_be_told",
    ),
    Mutant(
        "a soft prompt refuses rows of several sequences",
        "lowering/packed.py",
        "if found is None and _begin_anew(arguments):",
        "if False:",
        f"{_PACKED}::test_what_goes_by_rows_refuses_them",
    ),
    Mutant(
        "what is told by rows refuses rows of several sequences",
        "lowering/masks.py",
        'expect_one_in_each_row(borders, "the first and last tokens are told by rows")',
        "pass",
        f"{_PACKED}::test_what_goes_by_rows_refuses_them",
    ),
    Mutant(
        "layers with a state beside a fixed cache are given a mask of their tokens",
        "lowering/prompted_input.py",
        "as_long_as(longer, size) if holds_keys_alone(cache) else longer",
        "as_long_as(longer, size)",
        f"{_PADDED}::test_it_continues_so_where_layers_have_a_state",
    ),
    Mutant(
        "a mask is as long as a cache of a fixed size",
        "lowering/prompted_input.py",
        "as_long_as(longer, size) if holds_keys_alone(cache) else longer",
        "longer",
        f"{_INPUT}::test_generating_with_a_cache_equals_generating_by_hand",
    ),
)
