"""What the methods that change a weight share: what they see of it, and how it is merged."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from peft_compiler.errors import LoweringError
from peft_compiler.methods._method import Wiring
from peft_compiler.quantised import dequantised, is_quantised
from peft_compiler.site import Projection, Site

TRANSPOSED = frozenset({"transposed", "embedding", "transposed_experts"})
"""Forms of a projection whose last axis is the output."""


def form_of(site: Site) -> str:
    """Returns the form of the projection at a site."""
    assert isinstance(site.place, Projection)
    return site.place.form


def fan_in_of(site: Site) -> int:
    """Returns how many inputs one output of a projection adds up."""
    return math.prod(site.shape[1:]) if form_of(site) == "conv" else site.width_in


def groups_of(site: Site) -> int:
    """Returns into how many groups a convolution divides its channels; 1 for everything else."""
    return site.width_in // site.shape[1] if form_of(site) == "conv" else 1


def stack_of(site: Site) -> tuple[int, ...]:
    """Returns the axes before (out, in) of a weight: that of the experts, or none."""
    return () if site.experts is None else (site.experts,)


def rank_problems(r: int, site: Site) -> Iterator[str]:
    """Yields each reason why a weight cannot be updated in rank r."""
    fan_in, groups = fan_in_of(site), groups_of(site)
    limit = min(site.width_out, groups * fan_in)
    if r > limit:
        yield f"r={r} exceeds the rank of a {site.width_out} x {fan_in} weight: take r <= {limit}"
    if r % groups:
        yield f"r={r} does not divide among {groups} groups of channels: take a multiple of {groups}"
    if form_of(site) == "conv" and site.rows is not None:
        yield "the role has only some channels of a convolution: choose a place that has all of them"


def kaiming(generator: torch.Generator, *shape: int) -> Tensor:
    """Returns a matrix drawn as `nn.init.kaiming_uniform_(a=sqrt(5))` draws it: within 1 / sqrt(columns)."""
    bound = shape[-1] ** -0.5
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def matrix_of(site: Site, host: nn.Module) -> Tensor:
    """Returns the site's rows of the host's weight as (*experts, out, in), in the host's dtype.

    Of a quantised linear, the numbers that its codes stand for, in float32.

    Raises:
        LoweringError: If they are no numbers but the codes of a quantised weight.
    """
    assert isinstance(site.place, Projection)
    if site.place.quantised and site.place.form == "linear" and site.place.anchor is None:
        whole = dequantised(host, site.width_in, site.shape[0])
        return Narrowed(site).to(whole.device).rows_of(whole)
    weight = host.get_parameter(site.place.weight).detach()
    if is_quantised(weight):
        raise LoweringError(
            f"{site.path}: its weight is quantised ({weight.dtype}), and has no values to start from: "
            "dequantise the base, or start at random values"
        )
    return Narrowed(site).to(weight.device).rows_of(as_matrix(weight, site.place.form, site.place.axes))


def as_matrix(weight: Tensor, form: str, axes: tuple[int, int]) -> Tensor:
    """Returns a view of a weight with the axes that its form says: heads and their width are one."""
    if axes == (1, 1):
        return weight
    leading = axes[0] if form in TRANSPOSED else axes[1]
    return weight.flatten(leading).flatten(0, leading - 1)


def taken(values: Tensor) -> Tensor:
    """Returns values of a host as an inserted module starts with them: in float32, on the CPU, its own.

    A host on the meta device has none to give: then they are there too.
    """
    return (values if values.is_meta else values.cpu()).float().contiguous().clone()


def fold(inserted: nn.Module, parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Returns the parameters with the changed weight, computed in float32 or better and rounded once."""
    assert isinstance(inserted, Update | WeightMap)
    weight = parameters["weight"]
    precise = torch.promote_types(weight.dtype, torch.float32)
    changed = copy.deepcopy(inserted).to(weight.device, precise).changed(weight.to(precise))
    return {**parameters, "weight": changed.to(weight.dtype)}


class Update(nn.Module, ABC):
    """What is added to a weight; beside the host, it is applied to what the host is applied to."""

    @abstractmethod
    def delta(self) -> Float[Tensor, "*experts d_out d_in"]:
        """Returns what is added to the site's rows."""

    def changed(self, weight: Tensor) -> Tensor:
        """Returns W + delta for the site's rows of W, laid out as `MergeRule` says."""
        return weight + self.delta().reshape(weight.shape)


class Narrowed(nn.Module):
    """Knows which rows of its host's weight are the site's, `rows` of shape (out), and how they lie there."""

    rows: Tensor | None

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.transposed = form_of(site) in TRANSPOSED
        self.flattened = form_of(site) == "conv"
        self.axis = -1 if self.transposed else len(stack_of(site))
        rows = None if site.rows is None else torch.tensor(site.rows.indices)
        self.register_buffer("rows", rows, persistent=False)

    def rows_of(self, weight: Tensor) -> Float[Tensor, "*experts d_out d_in"]:
        """Returns the site's rows of a whole weight."""
        rows = weight if self.rows is None else weight.index_select(self.axis, self.rows)
        return rows.mT if self.transposed else rows.flatten(1) if self.flattened else rows

    def with_rows(self, weight: Tensor, rows: Float[Tensor, "*experts d_out d_in"]) -> Tensor:
        """Returns a whole weight with new values for the site's rows; the others are copied.

        In memory it lies as the host's does, because products of matrices that lie otherwise
        are rounded otherwise.
        """
        laid_out = rows.mT if self.transposed else rows
        if self.rows is None:
            return laid_out.reshape(weight.shape).contiguous()
        if self.flattened:
            laid_out = laid_out.reshape(-1, *weight.shape[1:])
        return weight.index_copy(self.axis, self.rows, laid_out)


class WeightMap(Narrowed, ABC):
    """Stands on a weight: gives what takes its place, in the layout of the host's."""

    @abstractmethod
    def mapped(self, matrix: Float[Tensor, "*experts d_out d_in"]) -> Float[Tensor, "*experts d_out d_in"]:
        """Returns what becomes of the site's rows."""

    @override
    def forward(self, weight: Tensor) -> Tensor:
        return self.with_rows(weight, self.mapped(self.rows_of(weight)))

    def changed(self, weight: Tensor) -> Tensor:
        """Returns what becomes of the site's rows of W, laid out as `MergeRule` says."""
        matrix = weight.flatten(1) if self.flattened else weight
        return self.mapped(matrix).reshape(weight.shape)


class WeightSum(WeightMap, ABC):
    """W + delta."""

    @abstractmethod
    def delta(self) -> Float[Tensor, "*experts d_out d_in"]:
        """Returns what is added to the site's rows."""

    @override
    def mapped(self, matrix: Float[Tensor, "*experts d_out d_in"]) -> Float[Tensor, "*experts d_out d_in"]:
        return matrix + self.delta()


class Added(WeightSum):
    """W + delta, for an update that does not stand beside its host."""

    def __init__(self, site: Site, update: Update) -> None:
        super().__init__(site)
        self.update = update

    @override
    def delta(self) -> Float[Tensor, "*experts d_out d_in"]:
        return self.update.delta()


class Beside(Update):
    """The delta of a sum, applied to what its host is applied to: a quantised weight cannot be added to."""

    def __init__(self, summed: WeightSum) -> None:
        super().__init__()
        self.summed = summed

    @override
    def delta(self) -> Float[Tensor, "d_out d_in"]:
        return self.summed.delta()

    @override
    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        return functional.linear(x, self.summed.delta())


def wiring_of_sum(site: Site) -> Wiring:
    """Returns how W + delta joins: on the weight, but beside a quantised linear."""
    beside = isinstance(site.place, Projection) and site.place.quantised and site.place.form == "linear"
    return Wiring.BESIDE if beside else Wiring.ON_WEIGHT


def joined_as_sum(summed: WeightSum, site: Site) -> WeightSum | Beside:
    """Returns what is inserted for W + delta, by the wiring that `wiring_of_sum` gives."""
    return Beside(summed) if wiring_of_sum(site) is Wiring.BESIDE else summed
