"""Low-rank updates: scale · B A, for every form of projection.

`down` is A and `up` is B. A convolution's `down` has the shape (r, in / groups, *kernel) and
its `up` (out, r / groups, 1, ...), stacked experts have an axis in front, and everything
else has (r, in) and (out, r).
"""

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from peft_compiler.methods._weights import Update

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d

CONVOLUTIONS: Mapping[int, Callable[..., Tensor]] = {
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}
"""The convolution over so many axes."""


class LowRank(Update):
    """What all forms share. The scale is applied to the narrow activation, where it costs r products a token.

    `down` is A of shape (*experts, r, in), `up` B of shape (*experts, out, r), or as the file says of a
    convolution.

    A factor that `frozen` names is a buffer: saved, and not trained.
    """

    faster: ClassVar[tuple[str, ...]] = ("up",)
    """What LoRA+ trains at a higher rate."""
    down: Tensor
    up: Tensor

    def __init__(self, down: Tensor, up: Tensor, scale: float, frozen: tuple[str, ...] = ()) -> None:
        super().__init__()
        for name, factor in (("down", down), ("up", up)):
            if name in frozen:
                self.register_buffer(name, factor)
            else:
                self.register_parameter(name, nn.Parameter(factor))
        self.scale = scale

    @override
    def delta(self) -> Float[Tensor, "*experts d_out d_in"]:
        return self.scale * (self.up @ self.down)

    @override
    def extra_repr(self) -> str:
        return f"down={tuple(self.down.shape)}, up={tuple(self.up.shape)}, scale={self.scale}"


class LinearLoRA(LowRank):
    """scale · B A x."""

    @override
    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        return functional.linear(self.scale * functional.linear(x, self.down), self.up)


class LinearLoRAWithDropout(LinearLoRA):
    """scale · B A dropout(x)."""

    def __init__(
        self, down: Tensor, up: Tensor, scale: float, frozen: tuple[str, ...], dropout: float
    ) -> None:
        super().__init__(down, up, scale, frozen)
        self.dropout = nn.Dropout(dropout)

    @override
    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        return super().forward(self.dropout(x))


class EmbeddingLoRA(LowRank):
    """scale · B A, looked up at token ids; `down` is (r, entries)."""

    @override
    def forward(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d_out"]:
        return functional.linear(self.scale * functional.embedding(ids, self.down.t()), self.up)


class ConvLoRA(LowRank):
    """A convolution to r channels with the settings of the host's, then one of kernel size 1."""

    def __init__(
        self, down: Tensor, up: Tensor, scale: float, frozen: tuple[str, ...], host: Convolution
    ) -> None:
        axes = len(host.kernel_size)
        down, up = down.reshape(-1, *host.weight.shape[1:]), up.reshape(*up.shape, *[1] * axes)
        super().__init__(down, up, scale, frozen)
        self.convolve = CONVOLUTIONS[axes]
        padding = host.padding if host.padding_mode == "zeros" else 0
        self.settings = (host.stride, padding, host.dilation, host.groups)
        self.groups = host.groups

    @override
    def forward(self, x: Float[Tensor, "batch d_in *space"]) -> Float[Tensor, "batch d_out *narrower"]:
        narrow = self.convolve(x, self.down, None, *self.settings)
        return self.convolve(self.scale * narrow, self.up, groups=self.groups)

    @override
    def delta(self) -> Float[Tensor, "d_out d_in"]:
        return self.scale * grouped_product(self.up.flatten(1), self.down.flatten(1), self.groups)


class Pad(nn.Module):
    """Pads as the convolution `host` does when it pads with something else than zeros."""

    def __init__(self, host: Convolution) -> None:
        super().__init__()
        self.widths: list[int] = host._reversed_padding_repeated_twice  # pyright: ignore[reportPrivateUsage]
        self.mode = host.padding_mode

    @override
    def forward(self, x: Float[Tensor, "batch d_in *space"]) -> Float[Tensor, "batch d_in *wider"]:
        return functional.pad(x, self.widths, mode=self.mode)


class ConvLoRAAfter(ConvLoRA):
    """The same of `before(x)`: dropout, or padding, or both."""

    def __init__(
        self,
        down: Tensor,
        up: Tensor,
        scale: float,
        frozen: tuple[str, ...],
        host: Convolution,
        before: nn.Module,
    ) -> None:
        super().__init__(down, up, scale, frozen, host)
        self.before = before

    @override
    def forward(self, x: Float[Tensor, "batch d_in *space"]) -> Float[Tensor, "batch d_out *narrower"]:
        return super().forward(self.before(x))


class FromStart(Update):
    """scale · (B A - B0 A0), where A and B start at factors of the base's own weight, A0 and B0.

    The base keeps all of its weight, so two compiled models can share it: what the papers take
    out of it is taken off here, from the input without dropout, as there. Identity at
    initialisation because equal numbers cancel.
    """

    def __init__(self, update: Update, start: Update) -> None:
        super().__init__()
        self.update = update
        self.start = start

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.update(x) - self.start(x)

    @override
    def delta(self) -> Float[Tensor, "*experts d_out d_in"]:
        return self.update.delta() - self.start.delta()


class Shifted(Update):
    """An update, and `shift` of shape (out), which starts at zero, added: the host's bias, trained."""

    def __init__(self, update: Update, width: int, axes_after: int) -> None:
        super().__init__()
        self.update = update
        self.shift = nn.Parameter(torch.zeros(width))
        self.shape = (width, *[1] * axes_after)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.update(x) + self.shift.view(self.shape)

    @override
    def delta(self) -> Float[Tensor, "*experts d_out d_in"]:
        return self.update.delta()


def grouped_product(
    up: Float[Tensor, "*experts d_out r"], down: Float[Tensor, "*experts rank d_in"], groups: int
) -> Float[Tensor, "*experts d_out d_in"]:
    """Returns B A, for several groups of channels each from its own part of A and B."""
    if groups == 1:
        return up @ down
    product = up.unflatten(0, (groups, -1)) @ down.unflatten(0, (groups, -1))
    return product.flatten(0, 1)
