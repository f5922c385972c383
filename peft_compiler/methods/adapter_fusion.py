"""AdapterFusion: learned attention over several adapters, each trained before for a task of its own.

Pfeiffer et al. 2020, "AdapterFusion: Non-Destructive Task Composition for Transfer Learning",
https://arxiv.org/abs/2005.00247, section 3.2: with h what the adapters read and z_n what adapter n
gives, s = softmax over n of (Q h)ᵀ (K z_n), and the sum of s_n · V z_n joins where one adapter's
output would. Only Q, K and V, of shape (d, d), are trained; the adapters stay as they were.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal, Self

import torch
from jaxtyping import Float
from pydantic import AfterValidator, Field
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from peft_compiler.methods._bottleneck import ACTIVATIONS, Activation, no_bottleneck, projection, width_at
from peft_compiler.methods._loaded import Loaded, different_names
from peft_compiler.methods._method import MergeRule, Method, NoMerge, Wiring
from peft_compiler.site import EDGES, Role, Site

UNTRAINED = 0.01
"""Standard deviation of the projections of adapters that nothing was loaded into yet."""
OFF_DIAGONAL = 1e-6
"""What V holds beside ones on its diagonal, at the start."""


class AdapterFusion(Method, frozen=True):
    """Spec of the attention over some adapters at one place.

    >>> AdapterFusion(adapters=("entailment", "sentiment")).activation
    'relu'
    """

    paper: ClassVar[str] = "arXiv:2005.00247"
    attaches: ClassVar[Mapping[Role, Wiring]] = dict.fromkeys(sorted(EDGES), Wiring.AFTER_NORM)
    spoken: ClassVar[tuple[str, ...]] = ("adapter fusion", "adapterfusion")
    spoken_fields: ClassVar[Mapping[str, str]] = {"size": "width"}
    default_roles: ClassVar[tuple[Role, ...]] = (Role.FEED_FORWARD,)
    identity: ClassVar[bool] = False
    merge: ClassVar[MergeRule | NoMerge] = NoMerge("no weight of the base attends to adapters")

    kind: Literal["adapter_fusion"] = "adapter_fusion"
    adapters: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[a-zA-Z]\w*$")], ...], AfterValidator(different_names)
    ] = Field(default=("first", "second"), min_length=1, description="A name for each adapter.")
    width: int | None = Field(
        default=None, gt=0, description="Units in their narrow layers; 1/16 of the site's if not given."
    )
    activation: Activation = Field(default="relu", description="Between their two projections.")

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
        d = site.width_out
        return 3 * d * d + 2 * d  # Q and K with biases, V without

    @override
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> "Fusion":
        d, m = site.width_out, width_at(site, self.width)
        adapters = {name: FrozenBottleneck(d, m, self.activation, generator) for name in self.adapters}
        return Fusion(d, adapters, generator)


class FrozenBottleneck(Loaded):
    """up(activation(down(x))), with x of shape (..., d) and nothing to train.

    Its tensors have the names and shapes of those of a trained adapter, with an underscore for the dot:
    `down_weight` (m, d), `down_bias` (m), `up_weight` (d, m) and `up_bias` (d).
    """

    down_weight: Tensor
    down_bias: Tensor
    up_weight: Tensor
    up_bias: Tensor

    def __init__(self, d: int, m: int, activation: Activation, generator: torch.Generator) -> None:
        super().__init__()
        for name, shape in (("down", (m, d)), ("up", (d, m))):
            weight = torch.empty(shape).normal_(std=UNTRAINED, generator=generator)
            self.register_buffer(f"{name}_weight", weight)
            self.register_buffer(f"{name}_bias", torch.zeros(shape[0]))
        self.activation = ACTIVATIONS[activation]()

    @override
    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        narrow = self.activation(functional.linear(x, self.down_weight, self.down_bias))
        return functional.linear(narrow, self.up_weight, self.up_bias)


class Fusion(nn.Module):
    """The sum over n of softmax((Q h)ᵀ (K z_n)) V z_n, with h of shape (..., d) and z_n = adapter n of h.

    `query` is Q, `key` K and `value` V, with weights of shape (d, d); the first two have a bias. Not
    the identity at initialisation: V starts next to the identity, as in section 4.1, so that the
    adapters are averaged, by chance of Q and K, from the first step on.
    """

    def __init__(self, d: int, adapters: Mapping[str, FrozenBottleneck], generator: torch.Generator) -> None:
        super().__init__()
        self.adapters = nn.ModuleDict(dict(adapters))
        self.query = projection(d, d, d**-0.5, generator)
        self.key = projection(d, d, d**-0.5, generator)
        self.value = nn.Parameter(torch.full((d, d), OFF_DIAGONAL).fill_diagonal_(1.0))

    @override
    def forward(self, h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        z = torch.stack([adapter(h) for adapter in self.adapters.values()], -2)
        scores = (self.key(z) @ self.query(h)[..., None]).squeeze(-1)
        mixed = (scores.softmax(-1)[..., None, :] @ z).squeeze(-2)
        # V is linear: the sum of V z_n is V of the sum.
        return functional.linear(mixed, self.value)
