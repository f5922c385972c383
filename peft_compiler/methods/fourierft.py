"""FourierFT: a few coefficients of the Fourier transform of a weight's update are trained.

Gao et al. 2024, "Parameter-Efficient Fine-Tuning with Discrete Fourier Transform",
https://arxiv.org/abs/2405.03003, section 3.1, equations 2 to 4: W + alpha · Re(F^-1(C)), where C of
shape (out, in) is zero but for n trained entries, whose places are random and the same at every
site of a shape.
"""

import functools
import math
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from peft_compiler.methods._frozen import generator_of
from peft_compiler.methods._method import Factor, MergeRule, Method, NoMerge, Wiring
from peft_compiler.methods._weights import WeightSum, fan_in_of, fold, joined_as_sum, stack_of, wiring_of_sum
from peft_compiler.site import PROJECTIONS, Role, Site


class FourierFT(Method, frozen=True):
    """Spec of one sparse spectrum.

    >>> FourierFT(n=100).kind
    'fourierft'
    """

    paper: ClassVar[str] = "arXiv:2405.03003"
    attaches: ClassVar[Mapping[Role, Wiring]] = dict.fromkeys(sorted(PROJECTIONS), Wiring.ON_WEIGHT)
    spoken: ClassVar[tuple[str, ...]] = ("fourierft",)
    default_roles: ClassVar[tuple[Role, ...]] = (Role.QUERY, Role.VALUE)
    identity: ClassVar[bool] = False
    merge: ClassVar[MergeRule | NoMerge] = fold

    kind: Literal["fourierft"] = "fourierft"
    n: int = Field(default=1000, gt=0, description="Number of trained coefficients.")
    alpha: Factor = Field(default=150.0, description="What the update is scaled by.")
    init: Literal["gaussian", "zero"] = Field(
        default="gaussian",
        description="Where the coefficients start: normal as in the paper, or at no update at all.",
    )
    seed: int = Field(default=0, ge=0, description="What their places are drawn from, with the shape.")

    @override
    def starts_as_identity(self) -> bool:
        return self.init == "zero"

    @override
    def problems(self, site: Site) -> Iterator[str]:
        yield from super().problems(site)
        if site.role not in self.attaches:
            return
        out, fan_in = site.width_out, fan_in_of(site)
        if self.n > out * fan_in:
            yield f"n={self.n} exceeds the entries of a {out} x {fan_in} weight: take n <= {out * fan_in}"

    @override
    def parameter_count(self, site: Site) -> int:
        return math.prod(stack_of(site)) * self.n

    @override
    def wiring(self, site: Site) -> Wiring:
        return wiring_of_sum(site)

    @override
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> nn.Module:
        spectrum = torch.zeros(*stack_of(site), self.n)
        if self.init == "gaussian":
            spectrum.normal_(generator=generator)
        places = drawn_places(self.seed, site.width_out, fan_in_of(site), self.n)
        return joined_as_sum(SparseSpectrum(site, spectrum, places.clone(), self.alpha), site)


class SparseSpectrum(WeightSum):
    """W + alpha · Re(F^-1(C)), where `spectrum` (*experts, n) holds the entries of C at `places`.

    The places are not saved, because the seed gives them again. The transform is computed in
    float32 or better, as there is none for less.
    """

    places: Tensor

    def __init__(self, site: Site, spectrum: Tensor, places: Tensor, alpha: float) -> None:
        super().__init__(site)
        self.spectrum = nn.Parameter(spectrum)
        self.register_buffer("places", places, persistent=False)
        self.shape = (site.width_out, fan_in_of(site))
        self.alpha = alpha

    @override
    def delta(self) -> Float[Tensor, "*experts d_out d_in"]:
        dtype = torch.promote_types(self.spectrum.dtype, torch.float32)
        zeros = self.spectrum.new_zeros(*self.spectrum.shape[:-1], math.prod(self.shape), dtype=dtype)
        dense = zeros.index_copy(-1, self.places, self.spectrum.to(dtype)).unflatten(-1, self.shape)
        return (self.alpha * torch.fft.ifft2(dense).real).to(self.spectrum.dtype)


@functools.lru_cache(maxsize=16)
def drawn_places(seed: int, rows: int, columns: int, n: int) -> Tensor:
    """Returns n entries of a matrix, counted row by row; a permutation of all is too slow for every site."""
    return torch.randperm(rows * columns, generator=generator_of(seed, rows, columns))[:n].clone()
