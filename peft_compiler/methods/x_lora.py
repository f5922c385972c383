"""X-LoRA: a mixture of LoRAs, weighed for every token and place by a router that reads the base's states.

Buehler and Buehler 2024, "X-LoRA: Mixture of Low-Rank Adapter Experts, a Flexible Framework for
Large Language Models with Applications in Protein Mechanics and Molecular Design",
https://arxiv.org/abs/2402.07148, the section that describes the scaling head, and the authors'
code, https://github.com/EricLBuehler/xlora: each place with weight W gives W x + sum over i of
lambda_i · alpha / r · B_i A_i x, with A_i of shape (r, in) and B_i of shape (out, r) those of LoRA
i, trained before and left as they are. The stack runs twice: first with lambda at a fixed number,
without gradients, for its last states h of shape (batch, positions, d), from which the X-LoRA
scaling head, an MLP, gives lambda for the second.
"""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

import torch
from jaxtyping import Float
from pydantic import AfterValidator, Field
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from peft_compiler.errors import LoweringError
from peft_compiler.methods._loaded import Loaded, different_names
from peft_compiler.methods._method import Factor, MergeRule, Method, NoMerge, Wiring
from peft_compiler.methods._prompts import linear
from peft_compiler.methods._routing import Router, mlp_count
from peft_compiler.methods._weights import kaiming, rank_problems
from peft_compiler.site import SHORT_NAMES, Projection, Role, Site

WIDTH, DROPOUT = 2048, 0.2
"""Units between two layers of the router and the dropout of them, as in the authors' code."""

Softmax = Literal["all", "top_k", "off"]


class XLoRA(Method, frozen=True):
    """Spec of one place of a mixture of LoRAs.

    >>> XLoRA(adapters=("biology", "chemistry", "logic")).layerwise
    True
    """

    paper: ClassVar[str] = "arXiv:2402.07148"
    attaches: ClassVar[Mapping[Role, Wiring]] = dict.fromkeys(sorted(SHORT_NAMES["linear"]), Wiring.ROUTED)
    spoken: ClassVar[tuple[str, ...]] = ("x-lora", "xlora", "mixture of loras", "mixture of lora")
    spoken_fields: ClassVar[Mapping[str, str]] = {"rank": "r"}
    default_roles: ClassVar[tuple[Role, ...]] = (Role.QUERY, Role.VALUE)
    default_cross: ClassVar[bool | None] = False
    identity: ClassVar[bool] = True
    merge: ClassVar[MergeRule | NoMerge] = NoMerge("its update of a weight is another one for every token")

    kind: Literal["x_lora"] = "x_lora"
    adapters: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[a-zA-Z]\w*$")], ...], AfterValidator(different_names)
    ] = Field(default=("first", "second"), min_length=2, description="A name for each LoRA.")
    r: int = Field(default=8, gt=0, description="Rank of every LoRA.")
    alpha: Factor | None = Field(default=None, description="Each is scaled by alpha / r; r if not given.")
    train_adapters: bool = Field(default=False, description="Whether the LoRAs are trained with the router.")
    depth: int = Field(default=1, gt=0, description="Layers of the router, the last one included.")
    width: int | None = Field(
        default=None, gt=0, description="Units between two of them, if there are two; 2048 if not given."
    )
    dropout: float | None = Field(
        default=None, ge=0, lt=1, description="Probability to zero one of those units; 0.2 if not given."
    )
    layerwise: bool = Field(
        default=True, description="Whether each place has scalings of its own, by its own last layer."
    )
    softmax: Softmax = Field(
        default="all", description="Over the scalings of all LoRAs, over those that top_k keeps, or off."
    )
    temperature: Factor = Field(default=1.0, description="What scalings are divided by in the softmax.")
    top_k: int | None = Field(
        default=None, gt=0, description="How many LoRAs a token uses at a place; all if not given."
    )
    scaling_pass: float = Field(
        default=0.0, allow_inf_nan=False, description="Every scaling in the first run of the blocks."
    )
    weight: Factor = Field(default=1.0, description="Factor of every scaling in the second run.")

    @override
    def at(self, site: Site) -> Self:
        deep = self.depth > 1
        return self.model_copy(
            update={
                "alpha": float(self.r) if self.alpha is None else self.alpha,
                "width": WIDTH if self.width is None and deep else self.width,
                "dropout": (DROPOUT if deep else 0.0) if self.dropout is None else self.dropout,
            }
        )

    @override
    def problems(self, site: Site) -> Iterator[str]:
        yield from super().problems(site)
        yield from self._problems_of_the_router()
        if not isinstance(site.place, Projection):
            return
        yield from rank_problems(self.r, site)
        if site.cross and site.role in (Role.KEY, Role.VALUE):
            yield (
                f"the {site.role} of a cross-attention sees the positions of another sequence than "
                "the one that is routed: leave it out"
            )
        elif site.stack is None or site.batch_axis or site.place.form not in ("linear", "transposed"):
            yield (
                "it is not applied to each position of a stack of blocks, in their order, about which "
                "a router could decide: leave it out"
            )

    def _problems_of_the_router(self) -> Iterator[str]:
        """Yields each setting that would do nothing."""
        between = {"width": self.width, "dropout": self.dropout}
        for name, value in between.items():
            if self.depth == 1 and value:
                yield f"{name}={value} is for what is between layers, and the router has one: take depth=2"
        if self.softmax == "off" and self.temperature != 1:
            yield f"temperature={self.temperature} has no softmax to act on: take softmax=all"
        if self.softmax == "top_k" and (self.top_k is None or self.top_k < 2):
            yield "softmax=top_k needs two LoRAs or more to choose among: take top_k=2 or more"
        if self.top_k is not None and self.top_k >= len(self.adapters):
            yield f"top_k={self.top_k} keeps all {len(self.adapters)} LoRAs: take less, or leave it out"

    @property
    def scale(self) -> float:
        """The factor alpha / r."""
        return (self.r if self.alpha is None else self.alpha) / self.r

    def _widths(self, site: Site) -> tuple[int, ...]:
        """Returns the widths of the router's layers, without the last one where each place has its own."""
        assert site.stack is not None
        between = [self.width or WIDTH] * (self.depth - 1)
        return (site.stack.width, *between, *([] if self.layerwise else [len(self.adapters)]))

    @override
    def parameter_count(self, site: Site) -> int:
        factors = self.r * (site.width_in + site.width_out) if self.train_adapters else 0
        scores = self._widths(site)[-1] + 1 if self.layerwise else 0
        return len(self.adapters) * (factors + scores)

    @override
    def shared_counts(self, site: Site) -> Mapping[Hashable, int]:
        assert site.stack is not None
        return {site.stack.path: mlp_count(self._widths(site))}

    @override
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> "Mixture":
        assert site.stack is not None
        widths, count = self._widths(site), len(self.adapters)
        down = torch.stack([kaiming(generator, self.r, site.width_in) for _ in self.adapters])
        up = torch.zeros(count, site.width_out, self.r)
        loras = TrainedLoRAs(down, up) if self.train_adapters else LoadedLoRAs(down, up)
        score = linear(widths[-1], count, generator) if self.layerwise else nn.Identity()
        router = Router(site.stack, widths, self.layerwise, self.dropout or 0.0, self.scaling_pass, generator)
        weighing = Weighing(self.softmax, self.temperature, self.top_k, self.weight)
        return Mixture(router, score, weighing, loras, self.scale)


class LoadedLoRAs(Loaded):
    """The A of every LoRA as `down` (n, r, in), and the B as `up` (n, out, r): loaded, not trained."""

    down: Tensor
    up: Tensor

    def __init__(self, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.register_buffer("down", down)
        self.register_buffer("up", up)


class TrainedLoRAs(nn.Module):
    """The same `down` (n, r, in) and `up` (n, out, r), trained from what was loaded, or random A, zero B."""

    faster: ClassVar[tuple[str, ...]] = ("up",)
    """What LoRA+ trains at a higher rate."""

    def __init__(self, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(up)


@dataclass(frozen=True, slots=True)
class Weighing:
    """How what a router says of n LoRAs becomes their scalings; the settings of the spec."""

    softmax: Softmax
    temperature: float
    top_k: int | None
    weight: float

    def __call__(self, said: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """Returns lambda."""
        scalings = (said / self.temperature).softmax(-1) if self.softmax == "all" else said
        if self.top_k is not None:
            kept = scalings.topk(self.top_k, -1).indices
            dropped = torch.ones_like(scalings, dtype=torch.bool).scatter(-1, kept, False)
            if self.softmax == "top_k":
                scalings = (scalings / self.temperature).masked_fill(dropped, -torch.inf).softmax(-1)
            else:
                scalings = scalings.masked_fill(dropped, 0.0)
        return self.weight * scalings


class Mixture(nn.Module):
    """The sum over i of lambda_i · scale · B_i A_i x, with x of shape (batch, positions, in).

    `score`, where each place has its own last layer, has a weight of shape (n, width). Identity at
    initialisation because every B is zero, until LoRAs are loaded.
    """

    def __init__(
        self,
        router: Router,
        score: nn.Module,
        weighing: Weighing,
        loras: LoadedLoRAs | TrainedLoRAs,
        scale: float,
    ) -> None:
        super().__init__()
        self.router = router
        self.score = score
        self.weighing = weighing
        self.loras = loras
        self.scale = scale

    @override
    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        given = self.router.given
        if not isinstance(given, Tensor):
            if given == 0:
                return x.new_zeros(*x.shape[:-1], self.loras.up.shape[1])
            scalings = given
        else:
            scalings = self.weighing(self.score(_as_laid_out(given, x)))[..., None]
        narrow = functional.linear(x, self.loras.down.flatten(0, 1))
        weighed = narrow.unflatten(-1, self.loras.down.shape[:2]) * (self.scale * scalings)
        return functional.linear(weighed.flatten(-2), self.loras.up.transpose(0, 1).flatten(1))


def _as_laid_out(given: Tensor, x: Tensor) -> Float[Tensor, "*batch width"]:
    """Returns what is given for each position with the type and axes of `x`, which may have them as one.

    Raises:
        LoweringError: If `x` does not have those positions.
    """
    given = given.to(x.dtype)  # a router without layers gives the states themselves
    if x.shape[:-1] == given.shape[:-1]:
        return given
    if x.dim() == 2 and len(x) == given.shape[:-1].numel():
        return given.flatten(0, -2)
    raise LoweringError(
        f"a mixture of LoRAs is applied to {tuple(x.shape)}, its router read states of the shape "
        f"{tuple(given.shape)}; expected the same positions: leave this place out"
    )
