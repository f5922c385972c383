"""BitFit: the biases of the base, trained as shifts that are added to them.

Ben Zaken et al. 2021, "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked
Language-models", https://arxiv.org/abs/2106.10199, section 3: every bias of the encoder, those of
the layer norms too. The base stays frozen: (W x + b) + shift = W x + (b + shift), with a shift of
shape (out) beside each bias.
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from peft_compiler.methods._features import Shift, has_bias, has_channels_first, shifted, unscaled
from peft_compiler.methods._method import MergeRule, Method, NoMerge, Wiring
from peft_compiler.site import PROJECTIONS, SHORT_NAMES, Role, Site


def fold(inserted: nn.Module, parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Returns the parameters with bias b + shift."""
    assert isinstance(inserted, Shift)
    return shifted(parameters, inserted.shift)


class BitFit(Method, frozen=True):
    """Spec of one shift.

    >>> BitFit().add
    False
    """

    paper: ClassVar[str] = "arXiv:2106.10199"
    attaches: ClassVar[Mapping[Role, Wiring]] = dict.fromkeys(
        sorted(PROJECTIONS - {Role.EMBEDDING} | {Role.NORM}), Wiring.AFTER
    )
    spoken: ClassVar[tuple[str, ...]] = ("bitfit", "bias shift")
    default_roles: ClassVar[tuple[Role, ...]] = (*sorted(SHORT_NAMES["linear"]), Role.NORM)
    identity: ClassVar[bool] = True
    merge: ClassVar[MergeRule | NoMerge] = fold
    folds_into: ClassVar[frozenset[str]] = frozenset({"bias"})

    kind: Literal["bitfit"] = "bitfit"
    add: bool = Field(
        default=False,
        description="Whether places without a bias get one, as the baseline of IA3's paper has.",
    )

    @override
    def problems(self, site: Site) -> Iterator[str]:
        yield from super().problems(site)
        yield from unscaled(site)
        if not has_bias(site) and not self.add:
            yield "there is no bias here: choose places that have one, or take add=true to add it"

    @override
    def merge_rule(self, site: Site) -> MergeRule | NoMerge:
        return fold if has_bias(site) else NoMerge("the base has no bias that could take the shift")

    @override
    def parameter_count(self, site: Site) -> int:
        return site.width_out

    @override
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> Shift:
        """Returns a vector of zeros; it draws nothing."""
        return Shift(site.width_out, has_channels_first(site))
