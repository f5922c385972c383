"""Which part of a model each stack of blocks is, by what it attends to and what flows into it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from peft_compiler.analysis.module_graph import fact
from peft_compiler.analysis.ops import CONVOLUTIONS, SELECTIONS, kind, selected
from peft_compiler.analysis.roles.attention import Attention
from peft_compiler.analysis.roles.blocks import Block, Blocks
from peft_compiler.analysis.roles.linears import Dataflow
from peft_compiler.site import Tower

# Images come as (batch, channels, height, width), or with more axes.
_IMAGE_AXES = 4
# Patches of all images of a batch come in one row, as (patches, values).
_PATCH_AXES = 2
# What forwards of transformers call images: nothing else tells a row of patches from any other features.
_IMAGES = "pixel_values"


@dataclass(frozen=True, slots=True)
class Towers:
    """What is known of each stack of blocks, by its path.

    Attributes:
        towers: The part of the model that it is, where that is known.
        offsets: How many blocks of the same tower come before its first.
    """

    towers: Mapping[str, Tower | None]
    offsets: Mapping[str, int]

    def layer(self, block: Block) -> int:
        """Returns the index of a block in its tower."""
        return self.offsets[block.stack] + block.position


def find_towers(flow: Dataflow, blocks: Blocks, attentions: Sequence[Attention]) -> Towers:
    """Returns the tower of every stack.

    A stack that attends to another one is the decoder, the other the encoder. Any other
    is told by the inputs that reach its first block without passing another stack.
    """
    first_calls: dict[str, fx.Node] = {}
    for path, block in blocks.by_path.items():
        calls = flow.graph.calls.get(path, ())
        active = [node for call in calls for node in call.inputs if node in flow.taint.activations]
        if active:
            first_calls.setdefault(block.stack, active[0])
    towers: dict[str, Tower | None] = {}
    for stack, value in first_calls.items():
        towers[stack] = _fed_by(flow, blocks, stack, value, towers)
    for attention in attentions:
        towers.update(_around_cross_attention(blocks, attention))
    return Towers(towers, _offsets(blocks, towers))


def _around_cross_attention(blocks: Blocks, attention: Attention) -> dict[str, Tower | None]:
    here = blocks.holding(fact(attention.meeting.core).module)
    if not attention.cross or here is None:
        return {}
    sources = (blocks.holding(fact(source).module) for source in attention.sources)
    stacks = {source.stack for source in sources if source is not None and source.stack != here.stack}
    encoders: dict[str, Tower | None] = dict.fromkeys(stacks, Tower.ENCODER)
    return encoders | {here.stack: Tower.DECODER} if stacks else {}


def _fed_by(
    flow: Dataflow, blocks: Blocks, stack: str, value: fx.Node, known: Mapping[str, Tower | None]
) -> Tower | None:
    found: set[Tower | None] = set()
    earlier: set[Tower | None] = set()
    convolved: set[int] = set()
    seen: set[fx.Node] = set()
    queue = [value]
    while queue:
        node = queue.pop()
        if node in seen:
            continue
        seen.add(node)
        holder = blocks.holding(fact(node).module) if node.op == "call_function" else None
        if holder is not None and holder.stack != stack:
            earlier.add(known.get(holder.stack))
            continue
        convolved |= _axes(node)
        if kind(node) in SELECTIONS and any(index in flow.taint.inputs for index in selected(node)[1]):
            found.add(Tower.TEXT)
        elif node.op == "placeholder":
            found.add(_of_input(node, convolved))
        queue.extend(flow.active_inputs.get(node, ()))
    decisive = found or earlier
    return decisive.pop() if len(decisive) == 1 else None


def _axes(node: fx.Node) -> set[int]:
    """Returns over how many axes a node convolves, in a set; an empty one for any other."""
    return {len(fact(node).shape) - 2} if kind(node) in CONVOLUTIONS else set()


def _of_input(node: fx.Node, convolved: set[int]) -> Tower | None:
    axes, name = len(fact(node).shape), node.name
    # Patches in a row have two axes, and are made images again to be convolved; sound has one of time.
    is_patches = axes == _PATCH_AXES and (max(convolved, default=0) > 1 or name.startswith(_IMAGES))
    if axes >= _IMAGE_AXES or is_patches:
        return Tower.VISION
    return Tower.AUDIO if convolved else None


def _offsets(blocks: Blocks, towers: Mapping[str, Tower | None]) -> dict[str, int]:
    lengths: dict[str, int] = {}
    for block in blocks.by_path.values():
        lengths[block.stack] = max(lengths.get(block.stack, 0), block.position + 1)
    offsets: dict[str, int] = {}
    totals: dict[Tower | None, int] = {}
    for stack, length in lengths.items():
        tower = towers.get(stack)
        offsets[stack] = totals.get(tower, 0)
        totals[tower] = offsets[stack] + length
    return offsets
