"""Breaks of what is told beside attention."""

from tests.mutation.mutant import Mutant

_BESIDE = "analysis/roles/test_beside_attention.py"
_DIFFUSION = "architectures/test_diffusion.py"
_OBSTACLES = "analysis/roles/test_obstacles.py"
_CHOSEN = "architectures/test_chosen_queries.py"
_STREAMS = "architectures/test_several_streams.py"
_COMPRESSED = "architectures/test_compressed_attention.py"

ROLES = (
    Mutant(
        "each stream that attends jointly has an output",
        "analysis/roles/attention.py",
        "outputs = parts if len(parts) > 1 else near[:1]",
        "outputs = near[:1]",
        f"{_STREAMS}::test_each_stream_that_attends_jointly_has_an_output",
    ),
    Mutant(
        "keys of an earlier layer are of the same stream",
        "analysis/roles/attention.py",
        "if head in residuals:\n",
        "if False:\n",
        f"{_STREAMS}::test_keys_of_an_earlier_layer_are_no_other_stream",
    ),
    Mutant(
        "a table of distances is none of positions",
        "analysis/roles/inputs.py",
        "if table in flow.graph.parameters and counts and one_each and not is_given:",
        "if table in flow.graph.parameters and counts and not is_given:",
        "analysis/roles/test_inputs.py::test_a_table_of_distances_is_none_of_positions",
    ),
    Mutant(
        "what combines probabilities is an obstacle",
        "analysis/roles/obstacles.py",
        "!= _rows(softmax):",
        "!= _rows(softmax) and False:",
        f"{_OBSTACLES}::test_an_obstacle_is_named",
    ),
    Mutant(
        "what a branch ends in is computed from its stream",
        "analysis/roles/feed_forward.py",
        "return own or [*ends]",
        "return [*ends]",
        f"{_DIFFUSION}::test_what_makes_a_condition_is_no_feed_forward_layer",
    ),
    Mutant(
        "a head is computed from the body",
        "analysis/roles/embeddings_and_heads.py",
        "for node in found if node in after}",
        "for node in found}",
        f"{_DIFFUSION}::test_what_a_skip_connection_goes_around_is_no_head",
    ),
    Mutant(
        "what depends on an index that is not known is not known",
        "analysis/roles/replay.py",
        "return _distinct([moved]) if alike else ()",
        "return _distinct([moved])",
        f"{_CHOSEN}::test_what_depends_on_an_unknown_index_is_not_found",
    ),
    Mutant(
        "indices that count are followed",
        "analysis/roles/replay.py",
        "counted = _counted(source)\n    return",
        "counted = None\n    return",
        f"{_CHOSEN}::test_chosen_queries_come_from_every_row",
    ),
    Mutant(
        "channels are followed through a depthwise convolution",
        "analysis/roles/replay.py",
        "if kind(node) in CONVOLUTIONS and is_depthwise(node, node.all_input_nodes[1]):",
        "if False:",
        f"{_BESIDE}::test_keys_and_values_are_told_through_a_short_convolution",
    ),
    Mutant(
        "a depthwise convolution alone is no layer of a stream",
        "analysis/roles/residuals.py",
        "return kind(node) in CONVOLUTIONS and not is_depthwise(node, tensors(node)[1])",
        "return kind(node) in CONVOLUTIONS",
        f"{_BESIDE}::test_a_short_convolution_behind_a_feed_forward_layer_is_part_of_its_branch",
    ),
    Mutant(
        "learned weights of states are no attention",
        "analysis/roles/attention.py",
        "return not made[0] and made[1] == made[2] and (bool(made[1]) or is_learned)",
        "return False",
        f"{_BESIDE}::test_learned_weights_of_states_are_no_attention",
    ),
    Mutant(
        "a feed-forward layer may give its output to one more projection",
        "analysis/roles/feed_forward.py",
        "return _within(search, end, inner)",
        "return None",
        "analysis/roles/test_feed_forward.py::test_a_feed_forward_layer_may_lie_between_two_more_projections",
    ),
    Mutant(
        "a mixer's inputs are read from the sum that it is applied to",
        "analysis/roles/feed_forward.py",
        "return node not in search.residuals or search.residuals[node].origin is not search.residual.origin",
        "return True",
        "architectures/test_shared_block.py::test_roles_of_the_shared_block_and_of_the_mixers",
    ),
    Mutant(
        "several projections may make gate and up together",
        "analysis/roles/feed_forward.py",
        "if list(left.linears) == list(right.linears):",
        "if list(left.linears) == list(right.linears) and len(left.linears) == 1:",
        "architectures/test_shared_block.py::test_roles_of_the_shared_block_and_of_the_mixers",
    ),
    Mutant(
        "a sum that queries and keys have in common tells neither",
        "analysis/roles/operands.py",
        "if all(search.linears for search in apart.values()):",
        "if False:",
        f"{_COMPRESSED}::test_queries_and_keys_are_told_apart_by_the_groups_of_the_convolution",
    ),
    Mutant(
        "a convolution by heads is applied to projections",
        "analysis/roles/operands.py",
        "if earlier:",
        "if False:",
        f"{_COMPRESSED}::test_queries_and_keys_are_told_apart_by_the_groups_of_the_convolution",
    ),
    Mutant(
        "a projection counts where its channels are",
        "analysis/roles/fused_rows.py",
        "if arrived and all(bool((each == ELSEWHERE).all()) for each in arrived):",
        "if False:",
        f"{_COMPRESSED}::test_queries_and_keys_are_told_apart_by_the_groups_of_the_convolution",
    ),
    Mutant(
        "padding comes from elsewhere",
        "analysis/roles/replay.py",
        'functional.pad(cast(Tensor, args[0]), argument(node, 1, "pad"), value=ELSEWHERE)',
        'functional.pad(cast(Tensor, args[0]), argument(node, 1, "pad"))',
        _COMPRESSED,
    ),
    Mutant(
        "only whole groups of a convolution are followed",
        "analysis/roles/operands.py",
        "return rows is None or all(start % width == 0 == length % width for start, length in rows.runs)",
        "return True",
        f"{_COMPRESSED}::test_a_group_that_spans_queries_and_keys_tells_nothing_of_what_is_behind_it",
    ),
    Mutant(
        "channels are followed through a sum over taps",
        "analysis/roles/replay.py",
        "if kind(node) in _SUMS and (summed := _summed(node, values)):",
        "if kind(node) in _SUMS and (summed := ()):",
        f"{_BESIDE}::test_keys_and_values_are_told_through_a_convolution_with_learned_taps",
    ),
    Mutant(
        "sums that always hold what is from elsewhere tell no rows",
        "analysis/roles/replay.py",
        "not bool(((lowest != ELSEWHERE) | (highest == ELSEWHERE)).any())",
        "False",
        f"{_BESIDE}::test_the_mean_of_a_window_that_is_never_full_tells_no_rows",
    ),
    Mutant(
        "a softmax that is spelt out is one",
        "analysis/roles/softmax.py",
        'return kind(node) == "softmax" or _logsumexp(node) is not None',
        'return kind(node) == "softmax"',
        f"{_OBSTACLES}::test_projections_are_told_by_the_axis_of_the_softmax",
    ),
    Mutant(
        "a softmax that is spelt out runs over the axis of its sum",
        "analysis/roles/softmax.py",
        'axis = argument(_logsumexp(node) or node, 1, "dim")',
        'axis = argument(node, 1, "dim")',
        f"{_OBSTACLES}::test_projections_are_told_by_the_axis_of_the_softmax",
    ),
    Mutant(
        "only the scores' own sum makes a softmax of their exponential",
        "analysis/roles/softmax.py",
        " and tensors(lowered_by)[0] is logits",
        "",
        f"{_OBSTACLES}::test_an_exponential_of_other_differences_is_no_softmax",
    ),
    Mutant(
        "no prompt joins a softmax that is spelt out",
        "analysis/roles/obstacles.py",
        'if kind(softmax) != "softmax":',
        "if False:",
        f"{_OBSTACLES}::test_an_obstacle_is_named",
    ),
    Mutant(
        "one convolution of a sum is no mixer",
        "analysis/roles/feed_forward.py",
        "        if not inputs:\n            return None\n",
        "",
        "analysis/roles/test_feed_forward.py::test_a_convolution_of_a_sum_alone_is_no_mixer",
    ),
)
