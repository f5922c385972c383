"""Invertible adapters: embeddings go through a coupling, states before the head back through its inverse.

Pfeiffer et al. 2020, "MAD-X: An Adapter-Based Framework for Multi-Task Cross-Lingual Transfer",
https://arxiv.org/abs/2005.00052, section 4.3: the halves e₁, e₂ of an embedding become
o₁ = e₁ + F(e₂) and o₂ = e₂ + G(o₁), with F and G bottlenecks of a quarter of its width, from
(..., d / 2) to (..., d / 2); the inverse, e₂ = o₂ − G(o₁) and e₁ = o₁ − F(e₂), has the same
parameters.
"""

from collections.abc import Hashable, Iterator, Mapping
from typing import ClassVar, Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from peft_compiler.methods._bottleneck import Activation, Bottleneck, bottleneck_count, projection
from peft_compiler.methods._method import MergeRule, Method, NoMerge, Wiring
from peft_compiler.methods._shared import Shared
from peft_compiler.site import Projection, Role, Site


class InvertibleAdapter(Method, frozen=True):
    """Spec of a coupling after the embedding, and of its inverse where a head is named too.

    >>> InvertibleAdapter().activation
    'relu'
    """

    paper: ClassVar[str] = "arXiv:2005.00052"
    attaches: ClassVar[Mapping[Role, Wiring]] = {Role.EMBEDDING: Wiring.AFTER, Role.HEAD: Wiring.BEFORE}
    spoken: ClassVar[tuple[str, ...]] = ("invertible adapter",)
    spoken_fields: ClassVar[Mapping[str, str]] = {"size": "width"}
    default_roles: ClassVar[tuple[Role, ...]] = (Role.EMBEDDING,)
    identity: ClassVar[bool] = True
    merge: ClassVar[MergeRule | NoMerge] = NoMerge("an activation separates the projections of its halves")

    kind: Literal["invertible_adapter"] = "invertible_adapter"
    width: int | None = Field(
        default=None,
        gt=0,
        description="Units in each narrow layer; a quarter of the embedding's if not given.",
    )
    activation: Activation = Field(default="relu", description="Between the two projections of F and of G.")

    @override
    def at(self, site: Site) -> Self:
        return self.model_copy(update={"width": self._width(site)})

    @override
    def problems(self, site: Site) -> Iterator[str]:
        yield from super().problems(site)
        d, m = _features(site), self._width(site)
        if d % 2:
            yield f"the {d} features of the place have no halves: choose another place"
        elif m >= d // 2:
            yield f"width={m} is no bottleneck: half of the place is {d // 2} wide; take less"
        if isinstance(site.place, Projection) and site.place.form == "conv":
            yield "the head is a convolution, whose features are not the last axis: choose another place"
        if site.role is Role.HEAD and site.rows is not None:
            yield "what flows into the role flows into other rows too: choose a place that has them all"

    @override
    def parameter_count(self, site: Site) -> int:
        return 0

    @override
    def shared_counts(self, site: Site) -> Mapping[Hashable, int]:
        d, m = _features(site), self._width(site)
        return {Coupling.alike_for(d, m): 2 * bottleneck_count(d // 2, m)}

    @override
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> "Coupled":
        coupling = Coupling(_features(site), self._width(site), self.activation, generator)
        return Uncoupled(coupling) if site.role is Role.HEAD else Coupled(coupling)

    def _width(self, site: Site) -> int:
        return max(1, _features(site) // 4) if self.width is None else self.width


def _features(site: Site) -> int:
    """Returns how wide the activation is: what an embedding gives, or what a head is given."""
    return site.width_in if site.role is Role.HEAD else site.width_out


class Coupling(Shared):
    """F and G, which the coupling and its inverse have in common.

    Both add nothing at initialisation because their second projections start at zero.
    """

    def __init__(self, d: int, m: int, activation: Activation, generator: torch.Generator) -> None:
        super().__init__()
        self.alike = self.alike_for(d, m)
        half = d // 2
        self.f, self.g = (
            Bottleneck(
                projection(half, m, half**-0.5, generator), activation, projection(m, half, 0.0, generator)
            )
            for _ in range(2)
        )

    @staticmethod
    def alike_for(d: int, m: int) -> Hashable:
        """Returns what those for equally wide embeddings are alike in."""
        return "invertible coupling", d, m


class Coupled(nn.Module):
    """(e₁ + F(e₂), e₂ + G(o₁)) for the halves of e, of shape (..., d)."""

    def __init__(self, coupling: Coupling) -> None:
        super().__init__()
        self.coupling = coupling

    @override
    def forward(self, e: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        e1, e2 = e.chunk(2, -1)
        o1 = e1 + self.coupling.f(e2)
        return torch.cat([o1, e2 + self.coupling.g(o1)], -1)


class Uncoupled(Coupled):
    """The inverse: (o₁ − F(e₂), o₂ − G(o₁)) for the halves of o, of shape (..., d)."""

    @override
    def forward(self, e: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        o1, o2 = e.chunk(2, -1)
        e2 = o2 - self.coupling.g(o1)
        return torch.cat([o1 - self.coupling.f(e2), e2], -1)
