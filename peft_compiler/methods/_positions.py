"""Which positions of a sequence an intervention changes."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from typing_extensions import override

from peft_compiler.site import Site

_HIDDEN = -9000.0
"""What hides a key when it is added to its score is less: 10,000 or more. No bias of distance is."""


def choosing_problems(first: int | None, last: int | None, site: Site) -> Iterator[str]:
    """Yields why so many positions at both ends cannot be chosen."""
    chosen = (first or 0) + (last or 0)
    if chosen and site.batch_axis not in (0, 1):
        yield (
            "the positions of an example are not told apart here: examples and positions are flattened into "
            "one axis, or the example inputs have as many of one as of the other; leave out first and last, "
            "or take other example inputs"
        )
    if site.positions is not None and chosen > site.positions:
        given = " and ".join(f"{name}={value}" for name, value in (("first", first), ("last", last)) if value)
        yield f"{given} is beyond the {site.positions} positions of the longest input; take less"


class Positions(nn.Module):
    """Changes the first and the last positions of h, or all of them.

    h is (batch, positions, d), or (positions, batch, d) where the second axis counts examples.

    Padding does not count, on either side: the first token is the first position. A single
    position is a step of decoding, which goes on from positions that were given before: it is
    neither first nor last, as in the authors' code, which intervenes on the prompt alone.
    """

    def __init__(self, first: int | None, last: int | None, site: Site) -> None:
        super().__init__()
        self.first = first
        self.last = last
        self.batch_axis = site.batch_axis

    def changed(
        self, h: Float[Tensor, "*batch d"], mask: Tensor | None, change: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "*batch d"]:
        """Returns h with `change` of the chosen positions in their place.

        Args:
            h: The states.
            mask: What their attention is given, as `tokens_in` takes it; None without padding.
            change: Returns what some states become.
        """
        if self.first is None and self.last is None:
            return change(h)
        if self.batch_axis == 1:
            return self._of_ends(h.transpose(0, 1), mask, change).transpose(0, 1)
        return self._of_ends(h, mask, change)

    def _of_ends(self, h: Tensor, mask: Tensor | None, change: Callable[[Tensor], Tensor]) -> Tensor:
        n = h.shape[-2]
        if n == 1:
            return h
        if mask is not None:
            return torch.where(self._chosen(tokens_in(mask, n)).unsqueeze(-1), change(h), h)
        start = min(self.first or 0, n)
        end = max(n - (self.last or 0), start)
        kept = h[..., start:end, :]
        return torch.cat([change(h[..., :start, :]), kept, change(h[..., end:, :])], -2)

    def _chosen(self, tokens: Bool[Tensor, "batch n"]) -> Bool[Tensor, "batch n"]:
        rank = tokens.cumsum(-1)
        return tokens & ((rank <= (self.first or 0)) | (rank > rank[:, -1:] - (self.last or 0)))

    @override
    def extra_repr(self) -> str:
        return f"first={self.first}, last={self.last}"


def tokens_in(mask: Tensor, n: int) -> Bool[Tensor, "batch n"]:
    """Returns which of the last n positions of a mask are tokens and no padding.

    Args:
        mask: For keys (batch, keys), or for pairs (batch, heads, queries, keys); it says what is
            seen, as booleans or as ones, or it is what is added to scores.
        n: How many positions there are states of; keys may come from a cache before, and
            room of the cache behind.
    """
    if mask.dim() == 2:
        seen = _seen(mask)[:, -n:]
        # As ones and zeros of a floating dtype: what is added to scores is never one.
        return torch.where(mask.amax() == 1, mask[:, -n:] > 0, seen) if mask.is_floating_point() else seen
    pairs = _seen(mask)[:, 0]
    queries, keys = pairs.shape[-2:]
    if queries == 1:
        return pairs[:, 0, -n:]
    if queries == keys:
        return pairs.diagonal(dim1=-2, dim2=-1)
    # Each query sees itself last, unless it is padding: where the first one stands among the keys.
    numbers = torch.arange(keys, device=mask.device)
    last_seen = torch.where(pairs, numbers, -1).amax(-1)
    before = (last_seen - numbers[:queries]).amax().clamp(0, keys - queries)
    return pairs.gather(-1, (before + numbers[:queries]).expand(len(pairs), -1).unsqueeze(-1)).squeeze(-1)


def _seen(mask: Tensor) -> Bool[Tensor, "..."]:
    return mask > _HIDDEN if mask.is_floating_point() else mask != 0
