"""One factor or summand for every feature of an activation: what scaling and shifting methods share."""

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from peft_compiler.site import Projection, Site, Whole


def has_channels_first(site: Site) -> bool:
    """Whether the features that flow out of a place are the second axis, as after a convolution."""
    if isinstance(site.place, Projection):
        return site.place.form == "conv"
    return isinstance(site.place, Whole) and site.place.channels_first


def has_bias(site: Site) -> bool:
    """Whether the base adds a parameter to what flows out of a place."""
    return isinstance(site.place, Projection | Whole) and site.place.bias is not None


def unscaled(site: Site) -> Iterator[str]:
    """Yields why what flows out of a place cannot be scaled or shifted feature by feature."""
    if site.experts is not None:
        yield "the experts lie stacked in one op, whose output no single expert has: choose another place"
    if has_channels_first(site) and site.rows is not None:
        yield "the role has only some channels of a convolution: choose a place that has all of them"


def spread(feature: Float[Tensor, " d"], y: Tensor, channels_first: bool) -> Tensor:
    """Returns one number for each feature in the shape that meets `y` feature by feature."""
    return feature.view(-1, *[1] * (y.dim() - 2)) if channels_first else feature


def scaled(parameters: Mapping[str, Tensor], factor: Tensor) -> dict[str, Tensor]:
    """Returns the parameters by which every output is `factor` times as large, multiplied precisely."""
    folded: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        by_row = factor.to(parameter.device).view(-1, *[1] * (parameter.dim() - 1))
        folded[name] = (precise(parameter) * precise(by_row)).to(parameter.dtype)
    return folded


def shifted(parameters: Mapping[str, Tensor], shift: Tensor) -> dict[str, Tensor]:
    """Returns the parameters, with a bias, by which every output is larger by `shift`, added precisely."""
    bias = parameters["bias"]
    return {**parameters, "bias": (precise(bias) + precise(shift.to(bias.device))).to(bias.dtype)}


def precise(tensor: Tensor) -> Tensor:
    """Returns the tensor in float32 or better, so that a result is rounded once."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class Scale(nn.Module):
    """factor · y, with `factor` of shape (d). Identity at initialisation: it starts at one."""

    def __init__(self, d: int, channels_first: bool = False) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(d))
        self.channels_first = channels_first

    @override
    def forward(self, y: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return y * spread(self.factor, y, self.channels_first)


class Shift(nn.Module):
    """y + shift, with `shift` of shape (d). Identity at initialisation: it starts at zero."""

    def __init__(self, d: int, channels_first: bool = False) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(d))
        self.channels_first = channels_first

    @override
    def forward(self, y: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return y + spread(self.shift, y, self.channels_first)
