"""Breaks of what is told beside attention."""

from tests.mutation.mutant import Mutant

_BESIDE = "analysis/roles/test_beside_attention.py"

ROLES = (
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
        "return node not in search.residuals",
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
)
