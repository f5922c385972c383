"""Which module runs a stack of blocks, which one gives its last states, and what sees its positions."""

import pytest
from torch import nn

from peft_compiler.analysis.find_sites import find_sites
from peft_compiler.site import Role, Site, Stack
from peft_compiler.testing.decoder import small_decoder
from tests import zoo


def sites(name: str) -> tuple[Site, ...]:
    return find_sites(zoo.build(name), zoo.inputs(name))


@pytest.mark.parametrize(
    ("name", "stacks"),
    [
        ("llama", [("model", "model")]),
        ("bert", [("bert.encoder", "bert.encoder")]),
        ("vit", [("vit", "vit")]),
        ("t5", [("encoder", "encoder"), ("decoder", "decoder")]),
        # Its root returns scores, and nothing norms what comes out of the last block.
        ("handmade", [("", "blocks.1")]),
    ],
)
def test_a_stack_knows_what_runs_it_and_what_gives_its_states(
    name: str, stacks: list[tuple[str, str]]
) -> None:
    found = dict.fromkeys(site.stack for site in sites(name) if site.role is Role.QUERY)
    assert list(found) == [Stack(*paths, zoo.HIDDEN) for paths in stacks]


@pytest.mark.parametrize("classes", [31, 32])
def test_scores_are_no_states_but_what_the_last_norm_gives_is(classes: int) -> None:
    """Even where there are as many scores as a state has numbers."""
    model, inputs = small_decoder()
    model.head = nn.Linear(32, classes)
    stacks = {site.stack for site in find_sites(model, inputs) if site.role is Role.QUERY}
    assert stacks == {Stack("", "norm", 32)}


def test_a_place_outside_of_the_blocks_is_in_no_stack() -> None:
    outside = [site for site in sites("llama") if site.role in (Role.EMBEDDING, Role.HEAD, Role.INPUT)]
    assert [site.stack for site in outside] == [None] * 3


@pytest.mark.parametrize(
    ("name", "role", "cross"),
    [
        ("torch_encoder", Role.QUERY, False),  # sees the positions before the sequences
        ("deberta_v2", Role.QUERY, False),  # is also applied to embeddings of distances
        ("mixtral", Role.DOWN, False),  # sees the tokens of each expert together
        ("t5", Role.KEY, True),  # sees the positions of the encoder
    ],
)
def test_what_sees_other_positions_is_in_no_stack(name: str, role: Role, cross: bool) -> None:
    found = [site.stack for site in sites(name) if site.role is role and site.cross is cross]
    assert found
    assert set(found) == {None}
