"""Where the heads of an attention lie, and where the windows that its keys may be cut into."""

from torch import Tensor, fx

from peft_compiler.analysis.module_graph import fact
from peft_compiler.analysis.ops import ATTENTION, kind
from peft_compiler.analysis.roles.attention import Attention
from peft_compiler.analysis.roles.batches import find_batch_axis
from peft_compiler.analysis.roles.linears import Dataflow, letters_of
from peft_compiler.analysis.roles.nearest import behind
from peft_compiler.analysis.roles.replay import Origins, index_along, replay, with_destinations
from peft_compiler.site import Role


def find_windows(flow: Dataflow, attention: Attention) -> int | None:
    """Returns which axis of the scores counts windows; None where none does, or that is not known.

    The scores are (batch, heads, windows, queries, keys), or have the windows before the heads.
    """
    meeting = attention.meeting
    if len(fact(meeting.query if kind(meeting.core) == ATTENTION else meeting.core).shape) != 5:
        return None
    arrived = _features_of_keys(flow, attention)
    if not arrived:
        return None
    return next((3 - heads for heads in (1, 2) if _are_heads(flow, attention, arrived, heads)), None)


def has_heads_behind_batch(flow: Dataflow, attention: Attention) -> bool:
    """Whether features of the keys vary from head to head, and not along the batch; so if unknown."""
    return _are_heads(flow, attention, _features_of_keys(flow, attention), 1)


def _features_of_keys(flow: Dataflow, attention: Attention) -> Origins:
    """Returns where each element of the keys comes from among the features of their projection, from 1."""
    projections, key = attention.projections[Role.KEY], attention.meeting.key
    linear = projections[0].linear if len(projections) == 1 else None
    if linear is None or linear.axes[1] > 1:
        return ()
    probe = index_along(fact(linear.node).shape, linear.feature_axis)
    region = with_destinations(behind(flow, key).passed)
    # From 1, so that it is not taken for padding, which is zero.
    return () if probe is None else replay({linear.node: probe + 1}, region, key)


def _are_heads(flow: Dataflow, attention: Attention, arrived: Origins, axis: int) -> bool:
    """Whether features vary along an axis of the scores, and along no other one but the width."""
    key, scores = attention.meeting.key, attention.meeting.scores
    letters = None if scores is None else letters_of(scores)
    (linear, *_) = attention.projections[Role.KEY] or (None,)
    for tensor in arrived:
        if letters is not None:
            left, right, out = letters
            own = right if scores is not None and flow.products[scores][1] is key else left
            rows = out[:-2]
            if not set(rows) <= set(own):
                return False  # the keys are shared by windows or heads
            order = rows + "".join(letter for letter in own if letter not in rows)
            examples = [_examples(tensor.permute(*map(own.index, order)), len(rows), axis)]
        elif tensor.dim() > 3:
            examples = [_examples(tensor, tensor.dim() - 2, axis)]
        else:
            assert linear is not None
            examples = [
                tensor.unflatten(0, (batch, -1)) if len(tensor) % batch == 0 else tensor
                for batch in _lengths_of_batch(flow, linear.linear.node)
            ]
        if not any(_are_alike(each) for each in examples):
            return False
    return True


def _examples(keys: Tensor, rows: int, heads: int) -> Tensor:
    """Returns keys with all of their first `rows` axes but that of the heads as one, the first."""
    return keys.movedim(heads, rows - 1).flatten(0, rows - 2)


def _are_alike(examples: Tensor) -> bool:
    """Whether the same arrives for each example; padding is left out, since it is of no key."""
    own = examples > 0
    return bool((examples == examples.amax(0, keepdim=True))[own].all())


def _lengths_of_batch(flow: Dataflow, value: fx.Node) -> tuple[int, ...]:
    """Returns how long the batch is in a value, or may be where that is not told apart."""
    axis, shape = find_batch_axis(flow.graph, value), fact(value).shape
    return shape[:-1] if axis is None else shape[axis : axis + 1]
