"""Trained copies: a part of the base, such as a new classifier head, trained in a copy of it.

Not a method of its own paper: Devlin et al. 2018, "BERT: Pre-training of Deep Bidirectional
Transformers for Language Understanding", https://arxiv.org/abs/1810.04805, section 4.1, train a new
head, scores = log softmax(C Wᵀ) with W of shape (labels, d), and every later method keeps doing so.
What a copy holds has the names and shapes of the base's.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from peft_compiler.methods._method import MergeRule, Method, NoMerge, Wiring
from peft_compiler.site import Projection, Role, Site, Whole


def take_over(inserted: nn.Module, parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Returns the copy's parameters in place of the host's, in their types."""
    return {name: inserted.get_parameter(name).detach().to(host.dtype) for name, host in parameters.items()}


class TrainedCopy(Method, frozen=True):
    """Spec of one trained copy.

    >>> TrainedCopy().kind
    'trained_copy'
    """

    paper: ClassVar[str] = "arXiv:1810.04805"
    attaches: ClassVar[Mapping[Role, Wiring]] = dict.fromkeys(
        (Role.EMBEDDING, Role.HEAD, Role.NORM), Wiring.REPLACE
    )
    spoken: ClassVar[tuple[str, ...]] = ("trained copy", "copy")
    default_roles: ClassVar[tuple[Role, ...]] = (Role.HEAD,)
    identity: ClassVar[bool] = True
    merge: ClassVar[MergeRule | NoMerge] = take_over

    kind: Literal["trained_copy"] = "trained_copy"

    @override
    def problems(self, site: Site) -> Iterator[str]:
        yield from super().problems(site)
        if isinstance(site.place, Projection) and site.place.quantised:
            yield "its weight is quantised, and codes cannot be trained: adapt it with LoRA instead"
        elif isinstance(site.place, Projection) and site.place.anchor is not None:
            yield f"its weight is not all there is to a {site.module_type}: adapt it with LoRA instead"

    @override
    def parameter_count(self, site: Site) -> int:
        if isinstance(site.place, Whole):
            return site.place.parameters
        assert isinstance(site.place, Projection)
        return math.prod(site.shape) + (site.width_out if site.place.bias else 0)

    @override
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> nn.Module:
        """Returns a copy of `host` that requires gradients; it draws nothing, and keeps device and dtype."""
        return copy.deepcopy(host).requires_grad_()
