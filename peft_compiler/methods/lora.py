"""LoRA: a low-rank update of a weight matrix.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models",
https://arxiv.org/abs/2106.09685, section 4.1: W + alpha / r · B A, with A of shape
(r, in) and B of shape (out, r). Convolutions and embeddings follow the authors' code,
https://github.com/microsoft/LoRA. Its variants that keep this form are settings:

- rsLoRA, https://arxiv.org/abs/2312.03732, section 3: alpha / sqrt(r) in place of alpha / r.
- LoRA-FA, https://arxiv.org/abs/2308.03303, section 3: A stays as it was drawn.
- PiSSA, https://arxiv.org/abs/2404.02948, section 3, equations 2 to 4: from W = U S V, B A starts at the r
  largest singular values, and the base at the rest.
- OLoRA, https://arxiv.org/abs/2406.01775, its method section: from W = Q R, B starts at the first r
  columns of Q and A at the first r rows of R.
- LoRA+, https://arxiv.org/abs/2402.12354, section 4: `peft_compiler.parameter_groups`.
"""

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from peft_compiler.methods._low_rank import (
    ConvLoRA,
    ConvLoRAAfter,
    Convolution,
    EmbeddingLoRA,
    FromStart,
    LinearLoRA,
    LinearLoRAWithDropout,
    LowRank,
    Pad,
    Shifted,
)
from peft_compiler.methods._method import Factor, MergeRule, Method, NoMerge, Wiring
from peft_compiler.methods._weights import (
    Added,
    fan_in_of,
    fold,
    form_of,
    groups_of,
    matrix_of,
    rank_problems,
    stack_of,
    taken,
)
from peft_compiler.site import PROJECTIONS, Projection, Role, Site


def fold_with_bias(inserted: nn.Module, parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Returns the parameters with weight W + scale · B A and, where the bias is trained, bias b + shift."""
    folded = dict(fold(inserted, parameters))
    if isinstance(inserted, Shifted):
        bias = parameters["bias"]
        folded["bias"] = (bias.float() + inserted.shift.to(bias.device).float()).to(bias.dtype)
    return folded


class LoRA(Method, frozen=True):
    """Spec of one low-rank update.

    >>> LoRA(r=4).kind
    'lora'
    """

    paper: ClassVar[str] = "arXiv:2106.09685"
    attaches: ClassVar[Mapping[Role, Wiring]] = dict.fromkeys(sorted(PROJECTIONS), Wiring.BESIDE)
    spoken: ClassVar[tuple[str, ...]] = ("lora", "low-rank update")
    spoken_fields: ClassVar[Mapping[str, str]] = {"rank": "r"}
    default_roles: ClassVar[tuple[Role, ...]] = (Role.QUERY, Role.VALUE)
    identity: ClassVar[bool] = True
    merge: ClassVar[MergeRule | NoMerge] = fold_with_bias
    folds_into: ClassVar[frozenset[str]] = frozenset({"weight", "bias"})

    kind: Literal["lora"] = "lora"
    r: int = Field(default=8, gt=0, description="Rank of the update.")
    alpha: Factor | None = Field(
        default=None,
        description="The update is scaled by alpha / r; r if not given.",
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Probability to zero an input of the update.")
    rank_stabilised: bool = Field(
        default=False, description="Whether to scale by alpha / sqrt(r) instead (rsLoRA)."
    )
    bias: bool = Field(default=False, description="Whether to train the projection's bias too, as a shift.")
    init: Literal["gaussian", "kaiming", "pissa", "olora"] = Field(
        default="gaussian",
        description="Where A and B start: at a random A, Gaussian or uniform, and B = 0; "
        "or both at factors of the base's weight.",
    )
    freeze_a: bool = Field(default=False, description="Whether A stays as it starts (LoRA-FA).")

    @override
    def at(self, site: Site) -> Self:
        return self if self.alpha is not None else self.model_copy(update={"alpha": float(self.r)})

    @override
    def problems(self, site: Site) -> Iterator[str]:
        yield from super().problems(site)
        if not isinstance(site.place, Projection):
            return
        yield from rank_problems(self.r, site)
        form, groups = site.place.form, groups_of(site)
        if form == "conv" and site.place.anchor is not None:
            yield "the convolution is no module of its own, which would tell its stride: choose another place"
        if self.dropout and form not in ("linear", "transposed", "conv"):
            what = "takes token ids" if form == "embedding" else "is updated as a whole, for all tokens"
            yield f"dropout={self.dropout} has no input to act on: the weight {what}; take dropout=0"
        if self.bias and (site.place.bias is None or site.experts is not None):
            yield "bias=true has nothing to train: the projection adds no bias of its own; take bias=false"
        if self.init == "kaiming" and form == "embedding" and not self.freeze_a:
            yield "init=kaiming draws A, which of an embedding starts at zero, and B at random; leave it out"
        if self.init in ("pissa", "olora") and groups > 1:
            yield (
                f"init={self.init} factors one matrix: the convolution has one for each of {groups} groups "
                "of channels; take init=gaussian"
            )

    @override
    def wiring(self, site: Site) -> Wiring:
        return Wiring.BESIDE if site.experts is None else Wiring.ON_WEIGHT

    @override
    def parameter_count(self, site: Site) -> int:
        up, down = self.r * site.width_out // groups_of(site), self.r * fan_in_of(site)
        factors = math.prod(stack_of(site)) * (up if self.freeze_a else up + down)
        return factors + (site.width_out if self.bias else 0)

    @override
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> nn.Module:
        down, up = self._factors(site, host, generator)
        frozen = ("down",) if self.freeze_a else ()
        update = self._update(site, host, down, up, frozen, self.dropout)
        if self.init in ("pissa", "olora"):
            start = self._update(site, host, down.clone(), up.clone(), ("down", "up"), dropout=0.0)
            update = FromStart(update, start)
        if self.bias:
            axes_after = len(site.shape) - 2 if form_of(site) == "conv" else 0
            update = Shifted(update, site.width_out, axes_after)
        return update if site.experts is None else Added(site, update)

    @property
    def scale(self) -> float:
        """The factor alpha / r, or alpha / sqrt(r)."""
        alpha = self.r if self.alpha is None else self.alpha
        return alpha / (math.sqrt(self.r) if self.rank_stabilised else self.r)

    def _factors(self, site: Site, host: nn.Module, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns A and B as they start."""
        if self.init == "pissa":
            return principal(matrix_of(site, host), self.r, self.scale)
        if self.init == "olora":
            return orthogonal(matrix_of(site, host), self.r)
        fan_in, stack = fan_in_of(site), stack_of(site)
        down = torch.empty(*stack, self.r, fan_in)
        up = torch.zeros(*stack, site.width_out, self.r // groups_of(site))
        bound = fan_in**-0.5
        if form_of(site) == "embedding" and not self.freeze_a:
            # Like the authors: a token that is never trained on keeps its embedding exactly.
            down.zero_()
            up.normal_(generator=generator)
        elif self.init == "gaussian":
            # As in the paper, with the variance of the authors' kaiming_uniform_(a=sqrt(5)).
            down.normal_(std=bound / math.sqrt(3), generator=generator)
        else:
            down.uniform_(-bound, bound, generator=generator)
        return down, up

    def _update(
        self, site: Site, host: nn.Module, down: Tensor, up: Tensor, frozen: tuple[str, ...], dropout: float
    ) -> LowRank:
        """Returns scale · B A for the form of the site's projection."""
        if form_of(site) == "conv":
            assert isinstance(host, Convolution)
            before: list[nn.Module] = [nn.Dropout(dropout)] if dropout else []
            before += [Pad(host)] if host.padding_mode != "zeros" else []
            build = partial(ConvLoRAAfter, before=nn.Sequential(*before)) if before else ConvLoRA
            return build(down, up, self.scale, frozen, host)
        if form_of(site) == "embedding":
            return EmbeddingLoRA(down, up, self.scale, frozen)
        if dropout:
            return LinearLoRAWithDropout(down, up, self.scale, frozen, dropout)
        return LinearLoRA(down, up, self.scale, frozen)


def principal(weight: Tensor, r: int, scale: float) -> tuple[Tensor, Tensor]:
    """Returns A and B such that scale · B A is the best approximation of rank r, the values split evenly."""
    u, s, v = torch.linalg.svd(weight.float(), full_matrices=False)
    root = (s[..., :r] / scale).sqrt()
    return taken(root[..., None] * v[..., :r, :]), taken(u[..., :r] * root[..., None, :])


def orthogonal(weight: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Returns the first r rows of R and the first r columns of Q as A and B."""
    q, r_factor = torch.linalg.qr(weight.float())
    return taken(r_factor[..., :r, :]), taken(q[..., :r])
