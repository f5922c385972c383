"""Bottleneck adapters: a narrow residual block on a sub-layer's output.

Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP",
https://arxiv.org/abs/1902.00751, section 2.1 and figure 2.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from peft_compiler.methods._method import MergeRule, Method, NoMerge, Wiring
from peft_compiler.site import EDGES, Role, Site

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


class Adapter(Method, frozen=True):
    """Spec of one bottleneck adapter.

    >>> Adapter(width=64).activation
    'gelu'
    """

    paper: ClassVar[str] = "arXiv:1902.00751"
    attaches: ClassVar[Mapping[Role, Wiring]] = dict.fromkeys(sorted(EDGES), Wiring.AFTER)
    spoken: ClassVar[tuple[str, ...]] = ("adapter", "bottleneck adapter", "bottleneck")
    spoken_fields: ClassVar[Mapping[str, str]] = {"size": "width"}
    default_roles: ClassVar[tuple[Role, ...]] = (Role.FEED_FORWARD,)
    identity: ClassVar[bool] = True
    merge: ClassVar[MergeRule | NoMerge] = NoMerge("an activation separates its two projections")

    kind: Literal["adapter"] = "adapter"
    width: int | None = Field(
        default=None,
        gt=0,
        description="Units in the narrow layer (m in the paper); 1/16 of the site's if not given.",
    )
    activation: Literal["gelu", "relu", "silu", "tanh"] = Field(
        default="gelu", description="Between the two projections; gelu in the authors' code."
    )

    @override
    def at(self, site: Site) -> Self:
        return self if self.width is not None else self.model_copy(update={"width": self._width(site)})

    @override
    def problems(self, site: Site) -> Iterator[str]:
        yield from super().problems(site)
        width = self._width(site)
        if width >= site.width_out:
            yield f"width={width} is no bottleneck: the place is {site.width_out} wide; take less"

    @override
    def parameter_count(self, site: Site) -> int:
        d, m = site.width_out, self._width(site)
        return 2 * m * d + d + m  # section 2.1

    @override
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> "Bottleneck":
        return Bottleneck(site.width_out, self._width(site), ACTIVATIONS[self.activation](), generator)

    def _width(self, site: Site) -> int:
        return max(1, site.width_out // 16) if self.width is None else self.width


class Bottleneck(nn.Module):
    """y + up(activation(down(y))), with y of shape (..., d).

    Identity at initialisation because `up` starts at zero. The paper starts both
    projections near zero instead, which is only close to the identity. `down` is
    Gaussian with variance 1 / d so that `up` has a gradient from the first step on.
    """

    def __init__(self, d: int, m: int, activation: nn.Module, generator: torch.Generator) -> None:
        super().__init__()
        # On "meta" first: nn.Linear's own initialisation draws from the global generator.
        self.down = nn.Linear(d, m, device="meta").to_empty(device="cpu")
        self.activation = activation
        self.up = nn.Linear(m, d, device="meta").to_empty(device="cpu")
        nn.init.normal_(self.down.weight, std=d**-0.5, generator=generator)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    @override
    def forward(self, y: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return y + self.up(self.activation(self.down(y)))
