"""Modules that insertions hold in common become one, however many insertions use them."""

from collections.abc import Hashable

from torch import nn

from peft_compiler.methods._frozen import FrozenPair
from peft_compiler.methods._shared import Shared


def share_alike(module: nn.Module, rule: int, known: dict[Hashable, nn.Module]) -> None:
    """Puts, in place, the modules of `known` where `module` holds equal ones, and adds its others.

    Frozen pairs are shared by all insertions, trained modules by those of one rule.
    """
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, FrozenPair):
                where = (child.alike, child.down.device, child.down.dtype)
                setattr(parent, name, known.setdefault(where, child))
            elif isinstance(child, Shared):
                setattr(parent, name, known.setdefault((rule, child.alike), child))
