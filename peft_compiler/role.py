"""`Role`: what a place of a model is for, and `Tower`: the part of the model that it belongs to."""

from collections.abc import Mapping
from enum import StrEnum


class Role(StrEnum):
    """What a place is for, whatever its architecture calls it."""

    QUERY = "attention.query"
    KEY = "attention.key"
    VALUE = "attention.value"
    ATTENTION_OUTPUT = "attention.output"
    UP = "feed_forward.up"
    GATE = "feed_forward.gate"
    DOWN = "feed_forward.down"
    MIXER_INPUT = "mixer.input"
    MIXER_OUTPUT = "mixer.output"
    ROUTER = "router"
    EMBEDDING = "embedding"
    HEAD = "head"
    NORM = "norm"
    ATTENTION = "attention"
    """The attention sub-layer's output, before it joins the residual stream."""
    FEED_FORWARD = "feed_forward"
    """The feed-forward sub-layer's output, before it joins the residual stream."""
    MIXER = "mixer"
    """The output of a state-space or linear-attention sub-layer, before it joins the residual stream."""
    ATTENTION_CORE = "attention.core"
    """Where queries, keys, values and the mask meet."""
    BLOCK = "block"
    """The output of a whole block."""
    INPUT = "input"
    """Where token embeddings enter a tower."""


class Tower(StrEnum):
    """The part of a model that a block belongs to, told apart by what flows into it."""

    ENCODER = "encoder"
    """Of an encoder-decoder: the tower whose output the other one attends to."""
    DECODER = "decoder"
    """Of an encoder-decoder: the tower that attends to another one."""
    TEXT = "text"
    VISION = "vision"
    AUDIO = "audio"


PROJECTIONS = frozenset(
    {
        Role.QUERY, Role.KEY, Role.VALUE, Role.ATTENTION_OUTPUT, Role.UP, Role.GATE, Role.DOWN,
        Role.MIXER_INPUT, Role.MIXER_OUTPUT, Role.ROUTER, Role.EMBEDDING, Role.HEAD,
    }
)  # fmt: skip
"""Roles whose place is a `Projection`."""

EDGES = frozenset({Role.ATTENTION, Role.FEED_FORWARD, Role.MIXER})
"""Roles whose place is an `Edge`."""

SHORT_NAMES: Mapping[str, frozenset[Role]] = {
    "q": frozenset({Role.QUERY}),
    "k": frozenset({Role.KEY}),
    "v": frozenset({Role.VALUE}),
    "o": frozenset({Role.ATTENTION_OUTPUT}),
    "up": frozenset({Role.UP}),
    "gate": frozenset({Role.GATE}),
    "down": frozenset({Role.DOWN}),
    "attention": frozenset(
        {Role.ATTENTION, Role.ATTENTION_CORE, Role.QUERY, Role.KEY, Role.VALUE, Role.ATTENTION_OUTPUT}
    ),
    "ffn": frozenset({Role.FEED_FORWARD, Role.UP, Role.GATE, Role.DOWN}),
    "mixer": frozenset({Role.MIXER, Role.MIXER_INPUT, Role.MIXER_OUTPUT}),
    "linear": PROJECTIONS - {Role.EMBEDDING, Role.HEAD, Role.ROUTER},
    "embedding": frozenset({Role.EMBEDDING}),
    "head": frozenset({Role.HEAD}),
    "norm": frozenset({Role.NORM}),
    "router": frozenset({Role.ROUTER}),
    "block": frozenset({Role.BLOCK}),
    "input": frozenset({Role.INPUT}),
}
"""What a user writes, and the roles that it may stand for; a method takes those that it attaches to.

`ffn` is the sub-layer's output for an adapter and its projections for LoRA. The full
name of a role, such as `attention.query`, always stands for that role alone.
"""
