"""Random matrices that are neither trained nor saved, because a seed gives them again."""

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override


def generator_of(*material: object) -> torch.Generator:
    """Returns a generator that depends on numbers, texts and tuples of them alone."""
    # Not hash(): it differs from one process to the next.
    digest = hashlib.sha256(repr(material).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


class Uniform(NamedTuple):
    """A matrix with values drawn evenly from -bound to bound."""

    shape: tuple[int, ...]
    bound: float


class FrozenPair(nn.Module):
    """The matrices A and B as `down`, of shape (r, in), and `up`, (out, r), for whatever a method takes as r.

    Equal seeds and shapes give equal ones, at any site. A compiled model keeps one of those that are
    equal, however many sites there are. The values are such that bfloat16 can hold them, so that a
    change of dtype and back loses nothing.
    """

    down: Tensor
    up: Tensor

    def __init__(self, seed: int, down: Uniform, up: Uniform) -> None:
        super().__init__()
        self.alike = (seed, down, up)
        """Equal for modules that hold the same values."""
        generator = generator_of(seed, down, up)
        for name, (shape, bound) in (("down", down), ("up", up)):
            values = torch.empty(shape).uniform_(-bound, bound, generator=generator)
            self.register_buffer(name, values.bfloat16().float(), persistent=False)

    @override
    def extra_repr(self) -> str:
        return f"down={tuple(self.down.shape)}, up={tuple(self.up.shape)}"
