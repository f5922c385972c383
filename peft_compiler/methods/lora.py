"""LoRA: a low-rank update of a weight matrix.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models",
https://arxiv.org/abs/2106.09685, section 4.1: W + alpha / r · B A, with A of shape
(r, in) and B of shape (out, r). Convolutions and embeddings follow the authors' code,
https://github.com/microsoft/LoRA.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, Literal, Self

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from peft_compiler.methods._method import MergeRule, Method, NoMerge, Wiring
from peft_compiler.site import PROJECTIONS, Projection, Role, Rows, Site

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d

CONVOLUTIONS: Mapping[int, Callable[..., Tensor]] = {
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}
"""The convolution over so many axes."""


def fold(inserted: nn.Module, parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Returns the parameters with weight W + scale · B A, added up in float32 or better and rounded once."""
    assert isinstance(inserted, LowRank)
    weight = parameters["weight"]
    precise = torch.promote_types(weight.dtype, torch.float32)
    update = inserted.update(inserted.down.to(precise), inserted.up.to(precise))
    folded = weight.to(precise) + inserted.scale * update.to(weight.device)
    return {**parameters, "weight": folded.to(weight.dtype)}


class LoRA(Method, frozen=True):
    """Spec of one low-rank update.

    >>> LoRA(r=4).kind
    'lora'
    """

    paper: ClassVar[str] = "arXiv:2106.09685"
    attaches: ClassVar[Mapping[Role, Wiring]] = dict.fromkeys(sorted(PROJECTIONS), Wiring.BESIDE)
    spoken: ClassVar[tuple[str, ...]] = ("lora", "low-rank update")
    spoken_fields: ClassVar[Mapping[str, str]] = {"rank": "r"}
    default_roles: ClassVar[tuple[Role, ...]] = (Role.QUERY, Role.VALUE)
    identity: ClassVar[bool] = True
    merge: ClassVar[MergeRule | NoMerge] = fold

    kind: Literal["lora"] = "lora"
    r: int = Field(default=8, gt=0, description="Rank of the update.")
    alpha: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="The update is scaled by alpha / r; r if not given.",
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Probability to zero an input of the update.")

    @override
    def at(self, site: Site) -> Self:
        return self if self.alpha is not None else self.model_copy(update={"alpha": float(self.r)})

    @override
    def problems(self, site: Site) -> Iterator[str]:
        yield from super().problems(site)
        if not isinstance(site.place, Projection):
            return
        form, (fan_in, groups) = site.place.form, _fan_in_and_groups(site)
        limit = min(site.width_out, groups * fan_in)
        if self.r > limit:
            yield f"r={self.r} exceeds the rank of a {site.width_out} x {fan_in} weight: take r <= {limit}"
        if self.r % groups:
            yield f"r={self.r} does not divide among {groups} groups of channels: take a multiple of {groups}"
        if form == "conv" and site.rows is not None:
            yield "the role has only some channels of a convolution: choose a place that has all of them"
        if form == "conv" and site.place.anchor is not None:
            yield "the convolution is no module of its own, which would tell its stride: choose another place"
        if self.dropout and form not in ("linear", "transposed", "conv"):
            what = "takes token ids" if form == "embedding" else "is updated as a whole, for all tokens"
            yield f"dropout={self.dropout} has no input to act on: the weight {what}; take dropout=0"

    @override
    def wiring(self, site: Site) -> Wiring:
        return Wiring.BESIDE if site.experts is None else Wiring.ON_WEIGHT

    @override
    def parameter_count(self, site: Site) -> int:
        fan_in, groups = _fan_in_and_groups(site)
        return (site.experts or 1) * self.r * (fan_in + site.width_out // groups)

    @override
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> "LowRank":
        place = site.place
        assert isinstance(place, Projection)
        fan_in, groups = _fan_in_and_groups(site)
        stack = () if site.experts is None else (site.experts,)
        down, up = torch.empty(*stack, self.r, fan_in), torch.zeros(*stack, site.width_out, self.r // groups)
        if place.form == "embedding":
            # Like the authors: a token that is never trained on keeps its embedding exactly.
            down.zero_()
            up.normal_(generator=generator)
        else:
            # Gaussian as in the paper, with the variance of the authors' kaiming_uniform_(a=sqrt(5)).
            down.normal_(std=(3 * fan_in) ** -0.5, generator=generator)
        return _build(self, site, host, down, up)

    @property
    def scale(self) -> float:
        """The factor alpha / r."""
        return (self.r if self.alpha is None else self.alpha) / self.r


def _fan_in_and_groups(site: Site) -> tuple[int, int]:
    """Returns how many inputs one output adds up, and into how many groups a convolution divides them."""
    if isinstance(site.place, Projection) and site.place.form == "conv":
        return math.prod(site.shape[1:]), site.width_in // site.shape[1]
    return site.width_in, 1


class LowRank(nn.Module):
    """What all forms share: A is `down`, B is `up`, alpha / r is `scale`.

    Identity at initialisation because one of the two starts at zero. The scale is
    applied to the narrow activation, where it costs r products a token.
    """

    def __init__(self, down: Tensor, up: Tensor, scale: float) -> None:
        super().__init__()
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(up)
        self.scale = scale

    def update(self, down: Tensor, up: Tensor) -> Tensor:
        """Returns B A for A `down` and B `up`, laid out as `MergeRule` says."""
        return up @ down

    @override
    def extra_repr(self) -> str:
        return f"down={tuple(self.down.shape)}, up={tuple(self.up.shape)}, scale={self.scale}"


class LinearLoRA(LowRank):
    """scale · B A x, with `down` of shape (r, in) and `up` of shape (out, r)."""

    @override
    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        return functional.linear(self.scale * functional.linear(x, self.down), self.up)


class LinearLoRAWithDropout(LinearLoRA):
    """scale · B A dropout(x)."""

    def __init__(self, down: Tensor, up: Tensor, scale: float, dropout: float) -> None:
        super().__init__(down, up, scale)
        self.dropout = nn.Dropout(dropout)

    @override
    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        return super().forward(self.dropout(x))


class EmbeddingLoRA(LowRank):
    """scale · B A, looked up at token ids; `down` is (r, entries) and `up` is (out, r)."""

    @override
    def forward(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d_out"]:
        return functional.linear(self.scale * functional.embedding(ids, self.down.t()), self.up)


class ConvLoRA(LowRank):
    """A convolution to r channels with the settings of the host's, then one of kernel size 1.

    `down` has the shape (r, in / groups, *kernel) and `up` (out, r / groups, 1, ...).
    """

    def __init__(self, down: Tensor, up: Tensor, scale: float, host: Convolution) -> None:
        axes = len(host.kernel_size)
        super().__init__(down.reshape(-1, *host.weight.shape[1:]), up.reshape(*up.shape, *[1] * axes), scale)
        self.convolve = CONVOLUTIONS[axes]
        padding = host.padding if host.padding_mode == "zeros" else 0
        self.settings = (host.stride, padding, host.dilation, host.groups)
        self.groups = host.groups

    @override
    def forward(self, x: Float[Tensor, "batch d_in *space"]) -> Float[Tensor, "batch d_out *narrower"]:
        narrow = self.convolve(x, self.down, None, *self.settings)
        return self.convolve(self.scale * narrow, self.up, groups=self.groups)

    @override
    def update(self, down: Tensor, up: Tensor) -> Tensor:
        grouped_down = down.reshape(self.groups, down.shape[0] // self.groups, -1)
        grouped_up = up.reshape(self.groups, -1, down.shape[0] // self.groups)
        return (grouped_up @ grouped_down).reshape(-1, *down.shape[1:])


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

    def __init__(self, down: Tensor, up: Tensor, scale: float, host: Convolution, before: nn.Module) -> None:
        super().__init__(down, up, scale, host)
        self.before = before

    @override
    def forward(self, x: Float[Tensor, "batch d_in *space"]) -> Float[Tensor, "batch d_out *narrower"]:
        return super().forward(self.before(x))


class ExpertsLoRA(LowRank):
    """W + scale · B A for each expert; `down` is (experts, r, in) and `up` is (experts, out, r)."""

    @override
    def forward(self, weight: Float[Tensor, "experts d_out d_in"]) -> Float[Tensor, "experts d_out d_in"]:
        return torch.baddbmm(weight, self.up, self.down, alpha=self.scale)


class TransposedExpertsLoRA(LowRank):
    """The same for a weight of shape (experts, in, out)."""

    @override
    def forward(self, weight: Float[Tensor, "experts d_in d_out"]) -> Float[Tensor, "experts d_in d_out"]:
        return torch.baddbmm(weight, self.down.mT, self.up.mT, alpha=self.scale)


class ExpertRowsLoRA(LowRank):
    """The same on some rows of each expert: `up` has those rows only, the other rows are copied."""

    rows: Tensor

    def __init__(self, down: Tensor, up: Tensor, scale: float, rows: Rows) -> None:
        super().__init__(down, up, scale)
        self.register_buffer("rows", torch.tensor(rows.indices), persistent=False)

    @override
    def forward(self, weight: Float[Tensor, "experts d_out d_in"]) -> Float[Tensor, "experts d_out d_in"]:
        return weight.index_add(1, self.rows, torch.bmm(self.up, self.down), alpha=self.scale)


class TransposedExpertRowsLoRA(ExpertRowsLoRA):
    """The same for a weight of shape (experts, in, out)."""

    @override
    def forward(self, weight: Float[Tensor, "experts d_in d_out"]) -> Float[Tensor, "experts d_in d_out"]:
        return weight.index_add(2, self.rows, torch.bmm(self.down.mT, self.up.mT), alpha=self.scale)


def _build(method: LoRA, site: Site, host: nn.Module, down: Tensor, up: Tensor) -> LowRank:
    """Returns the module for the form of the site's projection."""
    assert isinstance(site.place, Projection)
    match site.place.form, site.rows:
        case "embedding", _:
            return EmbeddingLoRA(down, up, method.scale)
        case "conv", _:
            return _build_conv(method, host, down, up)
        case "experts", None:
            return ExpertsLoRA(down, up, method.scale)
        case "experts", Rows() as rows:
            return ExpertRowsLoRA(down, up, method.scale, rows)
        case "transposed_experts", None:
            return TransposedExpertsLoRA(down, up, method.scale)
        case "transposed_experts", Rows() as rows:
            return TransposedExpertRowsLoRA(down, up, method.scale, rows)
        case _ if method.dropout:
            return LinearLoRAWithDropout(down, up, method.scale, method.dropout)
        case _:
            return LinearLoRA(down, up, method.scale)


def _build_conv(method: LoRA, host: nn.Module, down: Tensor, up: Tensor) -> ConvLoRA:
    assert isinstance(host, Convolution)
    before: list[nn.Module] = [nn.Dropout(method.dropout)] if method.dropout else []
    if host.padding_mode != "zeros":
        before.append(Pad(host))
    if before:
        return ConvLoRAAfter(down, up, method.scale, host, nn.Sequential(*before))
    return ConvLoRA(down, up, method.scale, host)
