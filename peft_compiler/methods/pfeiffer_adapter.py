"""Pfeiffer adapters: one in each block, on the normalised sum that the feed-forward layer joins.

Pfeiffer et al. 2020, "AdapterFusion: Non-Destructive Task Composition for Transfer Learning",
https://arxiv.org/abs/2005.00247, the placement search of appendix A.2 and figure 5; as the authors'
library places it: the adapter reads norm(x + y), y being the feed-forward layer's output and x what
it is added to, and joins y before that sum is normalised once more:
norm(x + y + up(activation(down(norm(x + y))))). Where a block normalises first, there is no norm
behind the sum, and the adapter reads x + y itself. All three are of shape (..., d).
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import nn
from typing_extensions import override

from peft_compiler.methods._bottleneck import (
    Activation,
    Bottleneck,
    bottleneck_count,
    no_bottleneck,
    projection,
    width_at,
)
from peft_compiler.methods._method import MergeRule, Method, NoMerge, Wiring
from peft_compiler.site import EDGES, Role, Site


class PfeifferAdapter(Method, frozen=True):
    """Spec of one adapter that reads the normalised sum.

    >>> PfeifferAdapter().activation
    'relu'
    """

    paper: ClassVar[str] = "arXiv:2005.00247"
    attaches: ClassVar[Mapping[Role, Wiring]] = dict.fromkeys(sorted(EDGES), Wiring.AFTER_NORM)
    spoken: ClassVar[tuple[str, ...]] = ("pfeiffer adapter",)
    spoken_fields: ClassVar[Mapping[str, str]] = {"size": "width"}
    default_roles: ClassVar[tuple[Role, ...]] = (Role.FEED_FORWARD,)
    identity: ClassVar[bool] = True
    merge: ClassVar[MergeRule | NoMerge] = NoMerge("an activation separates its two projections")

    kind: Literal["pfeiffer_adapter"] = "pfeiffer_adapter"
    width: int | None = Field(
        default=None, gt=0, description="Units in the narrow layer; 1/16 of the site's if not given."
    )
    activation: Activation = Field(default="relu", description="Between the two projections.")

    @override
    def at(self, site: Site) -> Self:
        return self.model_copy(update={"width": width_at(site, self.width)})

    @override
    def problems(self, site: Site) -> Iterator[str]:
        yield from super().problems(site)
        if problem := no_bottleneck(site, self.width):
            yield problem

    @override
    def parameter_count(self, site: Site) -> int:
        return bottleneck_count(site.width_out, width_at(site, self.width))

    @override
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> Bottleneck:
        """Returns a module that adds nothing at first: its second projection starts at zero."""
        d, m = site.width_out, width_at(site, self.width)
        down, up = projection(d, m, d**-0.5, generator), projection(m, d, 0.0, generator)
        return Bottleneck(down, self.activation, up)
