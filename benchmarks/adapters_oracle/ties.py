"""Which tensor of the adapters library's is which tensor of an inserted module, for every kind of method."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.adapters_oracle.theirs import Slot
from peft_compiler.methods.loreft import LoReFT, orthonormal
from peft_compiler.plan import Insertion
from peft_compiler.site import Core

Part = Callable[[Tensor], Tensor]
"""Takes the part of a tensor, or of its gradient, that another tensor corresponds to."""


@dataclass(frozen=True)
class Tie:
    """One pair of tensors.

    Attributes:
        mine: Ours.
        name: What the library calls its own.
        part: Which part of that is ours.
        pulled: What the library's gradient becomes where it is taken of another tensor than ours.
    """

    mine: Tensor
    name: str
    part: Part = lambda tensor: tensor
    pulled: Part = lambda gradient: gradient


@dataclass(frozen=True)
class Place:
    """Where an insertion meets the library's.

    Attributes:
        slot: The library's tensors at the same place.
        model: Those that belong to no place: what all of an adapter shares.
        index: How many insertions of the same kind come before.
        matrix: Where the library adapts a fused matrix as a whole: which of its adapted parts this
            is, and of how many.
        gates: Those that stand at the place itself, where the others are kept in one module of all layers.
    """

    slot: Slot
    model: Slot
    index: int
    matrix: tuple[int, int] | None = None
    gates: Slot | None = None


BOTTLENECK = {
    "down.weight": "adapter_down.0.weight",
    "down.bias": "adapter_down.0.bias",
    "up.weight": "adapter_up.weight",
    "up.bias": "adapter_up.bias",
}


def bottleneck(module: nn.Module, insertion: Insertion, place: Place) -> Iterator[Tie]:
    """Yields two projections, and a norm, a gate or a scale where there are some."""
    names = dict(BOTTLENECK)
    if "adapter_norm_before.weight" in place.slot:
        down = {f"down.{part}": f"adapter_down.1.{part}" for part in ("weight", "bias")}
        names |= down | {f"norm.{part}": f"adapter_norm_before.{part}" for part in ("weight", "bias")}
    if "gate.weight" in place.slot:
        names |= {f"gate.{part}": f"gate.{part}" for part in ("weight", "bias")}
    yield from (Tie(module.get_parameter(mine), place.slot[theirs]) for mine, theirs in names.items())
    if "scaling" in place.slot:
        yield Tie(module.get_parameter("scale"), place.slot["scaling"], lambda scale: scale[0])


def compacter(module: nn.Module, insertion: Insertion, place: Place) -> Iterator[Tie]:
    """Yields the factors of both projections, and those that all share."""
    for mine, theirs in (("down", "adapter_down.0"), ("up", "adapter_up")):
        for part, name in (("left", "W_left"), ("right", "W_right"), ("bias", "b")):
            yield Tie(module.get_parameter(f"{mine}.{part}"), place.slot[f"{theirs}.{name}"])
    yield Tie(module.get_parameter("factors.matrices"), place.model["phm_rule"])


def fused_part(place: Place) -> Part:
    """Returns what takes the rows of one matrix out of those of a fused one."""
    if place.matrix is None:
        return lambda tensor: tensor
    which, count = place.matrix
    return lambda tensor: tensor.chunk(count)[which]


def lora(module: nn.Module, insertion: Insertion, place: Place) -> Iterator[Tie]:
    """Yields A and B, and a magnitude where there is one."""
    part = fused_part(place)
    yield Tie(module.get_parameter("down"), place.slot["lora_A"], part)
    yield Tie(module.get_parameter("up"), place.slot["lora_B"], part)
    if "m.weight" in place.slot:
        yield Tie(module.get_parameter("magnitude"), place.slot["m.weight"], torch.flatten)


def gated_lora(module: nn.Module, insertion: Insertion, place: Place) -> Iterator[Tie]:
    """Yields A, B and the gate."""
    yield from lora(module.get_submodule("update"), insertion, place)
    part = fused_part(place)
    yield Tie(module.get_parameter("gate.weight"), place.slot["gate.weight"], part)
    yield Tie(module.get_parameter("gate.bias"), place.slot["gate.bias"], part)


def vera(module: nn.Module, insertion: Insertion, place: Place) -> Iterator[Tie]:
    """Yields the two vectors, which the library keeps as whole matrices, and the frozen matrices."""
    yield Tie(module.get_parameter("d"), place.slot["vera_D"], torch.diagonal)
    yield Tie(module.get_parameter("b"), place.slot["vera_B"], torch.diagonal)
    yield Tie(module.get_buffer("pair.down"), place.model["lora_A"])
    yield Tie(module.get_buffer("pair.up"), place.model["lora_B"])


def ia3(module: nn.Module, insertion: Insertion, place: Place) -> Iterator[Tie]:
    """Yields the scaling vector."""
    part = fused_part(place)
    yield Tie(module.get_parameter("factor"), place.slot["lora_B"], lambda tensor: part(tensor.flatten()))


def prefix(module: nn.Module, insertion: Insertion, place: Place) -> Iterator[Tie]:
    """Yields keys and values, or the MLP that gives them: the library's has those of all layers as rows."""
    core = insertion.site.place
    assert isinstance(core, Core)
    heads, width, layer = core.key_heads, core.key_width, place.index
    if "control_trans" in place.slot:
        for which, name in enumerate(("keys", "values")):

            def part(flat: Tensor, which: int = which) -> Tensor:
                length = module.get_parameter("keys").shape[1]
                return flat.view(length, -1, 2, heads, width)[:, layer, which].transpose(0, 1)

            yield Tie(module.get_parameter(name), place.slot["control_trans"], part)
        return

    def rows(of_all: Tensor) -> Tensor:
        """Returns this layer's rows, head by head; the library has all heads' keys first."""
        parts = of_all.view(-1, 2, heads, width, *of_all.shape[1:])
        return parts[layer].transpose(0, 1).flatten(0, 2)

    yield Tie(module.get_parameter("trunk.embeddings"), place.slot["wte.weight"])
    for part in ("weight", "bias"):
        yield Tie(module.get_parameter(f"trunk.down.{part}"), place.slot[f"control_trans.0.{part}"])
        yield Tie(module.get_parameter(f"up.{part}"), place.slot[f"control_trans.2.{part}"], rows)


def gated_prefix(module: nn.Module, insertion: Insertion, place: Place) -> Iterator[Tie]:
    """Yields what a prefix has, and its gate."""
    assert place.gates is not None
    yield from prefix(module.get_submodule("prefix"), insertion, place)
    yield Tie(module.get_parameter("gate.weight"), place.gates["weight"])
    yield Tie(module.get_parameter("gate.bias"), place.gates["bias"])


def prompt(module: nn.Module, insertion: Insertion, place: Place) -> Iterator[Tie]:
    """Yields the embeddings."""
    yield Tie(module.get_parameter("embeddings"), place.model["prompt_embedding.weight"])


def loreft(module: nn.Module, insertion: Insertion, place: Place) -> Iterator[Tie]:
    """Yields R, orthonormal on both sides unless it is NoReFT, W and b."""
    rotation = module.get_parameter("rotation")

    def through_orthonormal(gradient: Tensor) -> Tensor:
        # The library's is that of the orthonormal matrix itself, ours of what is made so.
        return torch.autograd.functional.vjp(orthonormal, rotation.detach(), gradient)[1]

    assert isinstance(insertion.method, LoReFT)
    pulled = {"pulled": through_orthonormal} if insertion.method.orthonormal else {}
    yield Tie(rotation, place.slot["units.0.projection.weight"], **pulled)
    yield Tie(module.get_parameter("source"), place.slot["units.0.learned_source.weight"])
    yield Tie(module.get_parameter("bias"), place.slot["units.0.learned_source.bias"])


def direft(module: nn.Module, insertion: Insertion, place: Place) -> Iterator[Tie]:
    """Yields both matrices and b."""
    yield Tie(module.get_parameter("up"), place.slot["units.0.projection.weight"])
    yield Tie(module.get_parameter("down"), place.slot["units.0.learned_source.weight"])
    yield Tie(module.get_parameter("bias"), place.slot["units.0.learned_source.bias"])


def fusion(module: nn.Module, insertion: Insertion, place: Place) -> Iterator[Tie]:
    """Yields the queries, keys and values, and the frozen adapters, which are buffers here."""
    for name in ("query.weight", "query.bias", "key.weight", "key.bias"):
        yield Tie(module.get_parameter(name), place.slot[f"adapter_fusion_layer.first,second.{name}"])
    yield Tie(module.get_parameter("value"), place.slot["adapter_fusion_layer.first,second.value.weight"])
    for adapter in ("first", "second"):
        for mine, theirs in BOTTLENECK.items():
            buffer = module.get_buffer(f"adapters.{adapter}.{mine.replace('.', '_')}")
            yield Tie(buffer, place.slot[f"adapters.{adapter}.{theirs}"])


def invertible(module: nn.Module, insertion: Insertion, place: Place) -> Iterator[Tie]:
    """Yields the projections of F and of G."""
    for mine, theirs in (("f", "F"), ("g", "G")):
        for projection, index in (("down", 0), ("up", 2)):
            for part in ("weight", "bias"):
                parameter = module.get_parameter(f"coupling.{mine}.{projection}.{part}")
                yield Tie(parameter, place.slot[f"{theirs}.{index}.{part}"])


TIES: Mapping[str, Callable[[Any, Insertion, Place], Iterator[Tie]]] = {
    "adapter": bottleneck,
    "pfeiffer_adapter": bottleneck,
    "parallel_adapter": bottleneck,
    "gated_adapter": bottleneck,
    "compacter": compacter,
    "lora": lora,
    "gated_lora": gated_lora,
    "dora": lora,
    "vera": vera,
    "ia3": ia3,
    "prefix": prefix,
    "gated_prefix": gated_prefix,
    "prompt": prompt,
    "loreft": loreft,
    "direft": direft,
    "adapter_fusion": fusion,
    "invertible_adapter": invertible,
}
"""What yields the ties of an insertion, by the kind of its method."""
