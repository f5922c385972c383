"""Tensors that were trained before, and are loaded into an inserted module that leaves them as they are."""

from collections.abc import Iterator

from torch import Tensor, nn


class Loaded(nn.Module):
    """A part of an inserted module whose buffers `peft_compiler.fuse` fills from a saved folder.

    They are saved with what is inserted and left alone by an optimiser. Until something is
    loaded they are where a fresh adapter starts, so `verify` moves them a little, as it does
    parameters, before it looks at gradients.
    """


def loaded_buffers(module: nn.Module) -> Iterator[Tensor]:
    """Yields every buffer, at or below `module`, that something can be loaded into."""
    for part in module.modules():
        if isinstance(part, Loaded):
            yield from part.buffers(recurse=False)


def different_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Returns `names` if they are all different.

    Raises:
        ValueError: If one is there twice.
    """
    if len(set(names)) < len(names):
        raise ValueError("found one name twice; call each adapter something else")
    return names
