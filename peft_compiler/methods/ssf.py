"""SSF: what every op gives, each feature scaled and shifted.

Lian et al. 2022, "Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning",
https://arxiv.org/abs/2210.08823, section 3.2: γ ⊙ y + β after every linear layer and norm, both of
shape (d), and their re-parameterization, which folds them in:
γ ⊙ (W x + b) + β = (γ ⊙ W) x + (γ ⊙ b + β).
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from peft_compiler.methods._features import has_bias, has_channels_first, scaled, shifted, spread, unscaled
from peft_compiler.methods._method import MergeRule, Method, NoMerge, Wiring
from peft_compiler.site import PROJECTIONS, SHORT_NAMES, Role, Site, Whole


def fold(inserted: nn.Module, parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Returns the parameters with weight γ ⊙ W and bias γ ⊙ b + β."""
    assert isinstance(inserted, ScaleAndShift)
    return shifted(scaled(parameters, inserted.factor), inserted.shift)


class SSF(Method, frozen=True):
    """Spec of one scaling and shifting.

    >>> SSF().kind
    'ssf'
    """

    paper: ClassVar[str] = "arXiv:2210.08823"
    attaches: ClassVar[Mapping[Role, Wiring]] = dict.fromkeys(sorted(PROJECTIONS | {Role.NORM}), Wiring.AFTER)
    spoken: ClassVar[tuple[str, ...]] = ("ssf", "scale and shift")
    default_roles: ClassVar[tuple[Role, ...]] = (*sorted(SHORT_NAMES["linear"]), Role.NORM)
    identity: ClassVar[bool] = True
    merge: ClassVar[MergeRule | NoMerge] = fold
    folds_into: ClassVar[frozenset[str]] = frozenset({"weight", "bias"})

    kind: Literal["ssf"] = "ssf"

    @override
    def problems(self, site: Site) -> Iterator[str]:
        yield from super().problems(site)
        yield from unscaled(site)

    @override
    def merge_rule(self, site: Site) -> MergeRule | NoMerge:
        if isinstance(site.place, Whole) and site.place.weight is None:
            return NoMerge("the norm multiplies by no parameter that could take the scale")
        return fold if has_bias(site) else NoMerge("the base has no bias that could take the shift")

    @override
    def parameter_count(self, site: Site) -> int:
        return 2 * site.width_out

    @override
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> "ScaleAndShift":
        """Returns ones and zeros; it draws nothing."""
        return ScaleAndShift(site.width_out, has_channels_first(site))


class ScaleAndShift(nn.Module):
    """factor · y + shift, with `factor` and `shift` of shape (d).

    Identity at initialisation: they start at one and zero. The authors' code starts them
    around that, with a standard deviation of 0.02.
    """

    def __init__(self, d: int, channels_first: bool) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(d))
        self.shift = nn.Parameter(torch.zeros(d))
        self.channels_first = channels_first

    @override
    def forward(self, y: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        factor, shift = (spread(p, y, self.channels_first) for p in (self.factor, self.shift))
        return y * factor + shift
