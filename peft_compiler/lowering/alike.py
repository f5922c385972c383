"""Frozen random matrices that are equal become one, however many insertions use them."""

from collections.abc import Hashable

from torch import nn

from peft_compiler.methods._frozen import FrozenPair


def share_alike(module: nn.Module, known: dict[Hashable, FrozenPair]) -> None:
    """Puts, in place, the pairs of `known` where `module` holds equal ones, and adds its others."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, FrozenPair):
                where = (child.alike, child.down.device, child.down.dtype)
                setattr(parent, name, known.setdefault(where, child))
