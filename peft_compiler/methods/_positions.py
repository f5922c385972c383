"""Which positions of a sequence an intervention changes."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from peft_compiler.site import Site


def more_than_any_input(first: int | None, last: int | None, site: Site) -> Iterator[str]:
    """Yields why so many positions at both ends cannot be chosen."""
    chosen = (first or 0) + (last or 0)
    if site.positions is not None and chosen > site.positions:
        given = " and ".join(f"{name}={value}" for name, value in (("first", first), ("last", last)) if value)
        yield f"{given} is beyond the {site.positions} positions of the longest input; take less"


class Positions(nn.Module):
    """Changes the first and the last positions of h, of shape (..., positions, d), or all of them.

    Counted as they are given, padding included. A single position is a step of decoding, which
    goes on from positions that were given before: it is neither first nor last, as in the
    authors' code, which intervenes on the prompt alone.
    """

    def __init__(self, first: int | None, last: int | None) -> None:
        super().__init__()
        self.first = first
        self.last = last

    def changed(
        self, h: Float[Tensor, "*batch n d"], change: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "*batch n d"]:
        """Returns h with `change` of the chosen positions in their place."""
        if self.first is None and self.last is None:
            return change(h)
        n = h.shape[-2]
        if n == 1:
            return h
        start = min(self.first or 0, n)
        end = max(n - (self.last or 0), start)
        kept = h[..., start:end, :]
        return torch.cat([change(h[..., :start, :]), kept, change(h[..., end:, :])], -2)

    @override
    def extra_repr(self) -> str:
        return f"first={self.first}, last={self.last}"
