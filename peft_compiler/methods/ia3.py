"""IA3: keys, values and the inner activation of the feed-forward layer, each feature scaled.

Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context
Learning", https://arxiv.org/abs/2205.05638, section 3.3: softmax(Q (l_k ⊙ Kᵀ) / √d_k) (l_v ⊙ V) and
(l_ff ⊙ γ(W_1 x)) W_2, with l_k and l_v of shape (d_out), as wide as the keys and values, and l_ff
as the inner activation, which of a gated layer is the product that enters its second projection.
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from peft_compiler.methods._features import Scale, has_channels_first, precise, scaled, unscaled
from peft_compiler.methods._method import MergeRule, Method, NoMerge, Wiring
from peft_compiler.site import Projection, Role, Site


def fold(inserted: nn.Module, parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Returns the parameters with l ⊙ W and l ⊙ b, or with W diag(l) where l scales what flows in."""
    assert isinstance(inserted, Scale | ScaleExperts)
    if isinstance(inserted, ScaleOutput):
        return scaled(parameters, inserted.factor)
    weight = parameters["weight"]
    factor = inserted.factor.to(weight.device)
    # One column of W for each input: (out, in, *kernel), or (experts, out, in).
    by_column = factor[:, None] if factor.dim() == 2 else factor.view(1, -1, *[1] * (weight.dim() - 2))
    return {**parameters, "weight": (precise(weight) * precise(by_column)).to(weight.dtype)}


class IA3(Method, frozen=True):
    """Spec of one scaling vector.

    >>> IA3().kind
    'ia3'
    """

    paper: ClassVar[str] = "arXiv:2205.05638"
    attaches: ClassVar[Mapping[Role, Wiring]] = {
        Role.KEY: Wiring.AFTER,
        Role.VALUE: Wiring.AFTER,
        Role.DOWN: Wiring.BEFORE,
    }
    spoken: ClassVar[tuple[str, ...]] = ("ia3", "scaling vector")
    default_roles: ClassVar[tuple[Role, ...]] = (Role.KEY, Role.VALUE, Role.DOWN)
    identity: ClassVar[bool] = True
    merge: ClassVar[MergeRule | NoMerge] = fold
    folds_into: ClassVar[frozenset[str]] = frozenset({"weight", "bias"})

    kind: Literal["ia3"] = "ia3"

    @override
    def problems(self, site: Site) -> Iterator[str]:
        yield from super().problems(site)
        if site.role is not Role.DOWN:
            yield from unscaled(site)
        elif isinstance(site.place, Projection) and site.place.form == "conv" and _is_grouped(site):
            yield "what flows in is divided among groups of channels: choose another place"
        elif site.rows is not None:
            yield "what flows into the role flows into other rows too: choose a place that has them all"

    @override
    def wiring(self, site: Site) -> Wiring:
        return super().wiring(site) if site.experts is None else Wiring.ON_WEIGHT

    @override
    def parameter_count(self, site: Site) -> int:
        return (site.experts or 1) * (site.width_in if site.role is Role.DOWN else site.width_out)

    @override
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> "Scale | ScaleExperts":
        """Returns a vector of ones; it draws nothing."""
        place = site.place
        assert isinstance(place, Projection)
        if site.experts is not None:
            return ScaleExperts(site.experts, site.width_in, place.form == "transposed_experts")
        if site.role is Role.DOWN:
            return Scale(site.width_in, has_channels_first(site))
        return ScaleOutput(site.width_out, has_channels_first(site))


def _is_grouped(site: Site) -> bool:
    return site.shape[1] != site.width_in


class ScaleOutput(Scale):
    """l ⊙ y of what a projection gives, with `factor` l of shape (d_out)."""


class ScaleExperts(nn.Module):
    """W diag(l) for each expert, with `factor` l of shape (experts, in): W (l ⊙ x) = (W diag(l)) x."""

    def __init__(self, experts: int, d_in: int, transposed: bool) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(experts, d_in))
        self.transposed = transposed

    @override
    def forward(self, weight: Float[Tensor, "experts a b"]) -> Float[Tensor, "experts a b"]:
        return weight * (self.factor[:, :, None] if self.transposed else self.factor[:, None])
