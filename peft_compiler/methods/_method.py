"""`Method`: what every file in this folder declares. Knows sites, not graphs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Self, get_args

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from peft_compiler.errors import MethodError
from peft_compiler.site import Core, Edge, Projection, Role, Site


class Wiring(StrEnum):
    """How an inserted module m joins its site. `lowering.wire` has one function for each."""

    BESIDE = "beside"
    """Projection h: h(x) + m(x), on the site's rows only."""
    ON_WEIGHT = "on_weight"
    """Projection with weight W: m(W) in place of W."""
    BEFORE = "before"
    """Projection h: h(m(x)) in place of h(x)."""
    AFTER = "after"
    """Edge, projection or whole module that gives y: m(y) in place of y, on the site's rows only."""
    AFTER_WITH_MASK = "after_with_mask"
    """Whole module that gives y and is given a mask of its attention, or None: m(y, mask) in place of y."""
    PARALLEL = "parallel"
    """Edge y of a sub-layer that left the stream x: y + m(x) in place of y."""
    AFTER_NORM = "after_norm"
    """Edge y that is added to x: y + m(norm(x + y)) in place of y, or y + m(x + y) where the norm stands
    elsewhere."""
    EXTEND_KV = "extend_kv"
    """Attention core: the keys and values m() stand before the core's own."""
    EXTEND_KV_BY_INPUT = "extend_kv_by_input"
    """Attention core of an attention applied to x: the keys and values m(x) stand before the core's own."""
    GATED_KV = "gated_kv"
    """Attention core: it attends to the prompts of m() too, apart from its keys, through the gates of m()."""
    EXTEND_INPUT = "extend_input"
    """Input: the embeddings m() stand before those of the tokens."""
    EXCHANGE_INPUT = "exchange_input"
    """Input: the embeddings m() are those of the token ids beyond the vocabulary."""
    ROUTED = "routed"
    """Projection h: h(x) + m(x), on the site's rows only, where m asks the router that it holds; the stack
    of the site runs twice, and the router reads the states that the first run gives."""
    REPLACE = "replace"
    """Whole module h: m(x) in place of h(x)."""


Factor = Annotated[float, Field(gt=0, le=65504, allow_inf_nan=False)]
"""What something is multiplied by. Above the largest number of half precision it would be infinite there."""


@dataclass(frozen=True, slots=True)
class NoMerge:
    """Declared in place of a merge rule by a method that has none."""

    because: str


MergeRule = Callable[[nn.Module, Mapping[str, Tensor]], Mapping[str, Tensor]]
"""(inserted, the site's parameters) -> the parameters that compute the same function alone.

A projection's parameters are called `"weight"` and, where it has one, `"bias"`, and hold
the site's rows only, laid out (out, in, ...), whatever the base's layout; an embedding's
weight is (out, entries), and stacked experts have one more axis in front. So are the factor
and the summand that a norm ends in, both of shape (out). The parameters of a module that is
replaced have the names that the module gives them.
"""


class Method(BaseModel, ABC, frozen=True, extra="forbid"):
    """A PEFT method: its fields are what a spec may say, its class variables the static facts.

    A field left at None takes a default that depends on the site; `at(site)` fills it in.
    """

    paper: ClassVar[str]
    """Identifier of the paper, such as `"arXiv:2106.09685"`."""
    attaches: ClassVar[Mapping[Role, Wiring]]
    """Where it may stand, and how it joins there."""
    spoken: ClassVar[tuple[str, ...]]
    """What a sentence calls it, in the singular, such as `("deep prompt",)`; the first is written back."""
    spoken_fields: ClassVar[Mapping[str, str]] = {}
    """Other words for its fields in a sentence, such as `{"rank": "r"}`."""
    default_roles: ClassVar[tuple[Role, ...]]
    """Where it stands when a rule names no role."""
    default_cross: ClassVar[bool | None] = None
    """When a rule does not say: only in cross-attention (True), never (False), or in both (None)."""
    default_decoder: ClassVar[bool | None] = None
    """When a rule names no tower: only in the decoder of an encoder-decoder, never, or in both (None)."""
    identity: ClassVar[bool]
    """Whether a fresh insertion leaves the model's output as it was, bit for bit, by default."""
    merge: ClassVar[MergeRule | NoMerge]
    folds_into: ClassVar[frozenset[str]] = frozenset({"weight"})
    """The parameters of a site that merging changes."""

    kind: str
    """Name of the method in a spec; each subclass narrows it to one literal."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        declared = ("paper", "attaches", "spoken", "default_roles", "identity", "merge")
        missing = [name for name in declared if not hasattr(cls, name)]
        if missing:
            raise MethodError(f"{cls.__name__} does not declare {', '.join(missing)}")
        strangers = [role for role in cls.default_roles if role not in cls.attaches]
        if strangers:
            raise MethodError(
                f"{cls.__name__} stands by default at {', '.join(strangers)}, where it cannot attach"
            )

    @model_validator(mode="before")
    @classmethod
    def _takes_no_truth_for_a_number(cls, settings: Any) -> Any:
        # Or pydantic would take true for 1.
        for name, field in cls.model_fields.items() if isinstance(settings, Mapping) else ():
            kinds = {field.annotation, *get_args(field.annotation)}
            if isinstance(settings.get(name), bool) and bool not in kinds and kinds & {int, float}:
                raise ValueError(f"'{name}' is {settings[name]}, expected a number")
        return settings

    def positions_taken(self) -> int:
        """How many positions of the input an insertion takes from the tokens."""
        return 0

    def at(self, site: Site) -> Self:
        """Returns this method with every field that depends on the site filled in."""
        return self

    def tokenized(self, tokenizer: Any) -> Self:
        """Returns this method with the token ids of every text in it filled in."""
        return self

    def problems(self, site: Site) -> Iterator[str]:
        """Yields each reason why this method, filled in for `site`, cannot attach there."""
        if site.role not in self.attaches:
            allowed = ", ".join(sorted(self.attaches))
            yield f"{self.kind} attaches to {allowed}; this place is {site.role}"
        quantised = isinstance(site.place, Projection) and site.place.quantised
        if quantised and site.role in self.attaches and self.wiring(site) is Wiring.ON_WEIGHT:
            yield (
                f"the weight is quantised, and {self.kind} would map its values: dequantise the base, or "
                "take a method that stands beside the weight, such as LoRA"
            )
        if isinstance(site.place, Core) and site.place.obstacle is not None:
            yield f"nothing can join this attention: {site.place.obstacle}"
        reads_sum = self.attaches.get(site.role) is Wiring.AFTER_NORM
        if reads_sum and isinstance(site.place, Edge) and site.place.spread:
            yield (
                "what the sub-layer gives is spread over several streams before it is added, so there is "
                "no sum to read: take an adapter after it"
            )

    def wiring(self, site: Site) -> Wiring:
        """Returns how a module built for `site` joins it."""
        return self.attaches[site.role]

    def starts_as_identity(self) -> bool:
        """Whether a fresh insertion with these settings leaves the model's output as it was, bit for bit."""
        return self.identity

    def learns_from_any_input(self) -> bool:
        """Whether every input gives a gradient to what it builds, whatever tokens are in it."""
        return True

    def decodes_in_steps(self) -> bool:
        """Whether a sequence given to a cache in steps comes out as it does when given at once."""
        return True

    def merge_rule(self, site: Site) -> MergeRule | NoMerge:
        """Returns how a module built for `site` is merged, or why it cannot be."""
        return type(self).merge  # of the class: an instance would bind it

    @abstractmethod
    def parameter_count(self, site: Site) -> int:
        """Number of trainable parameters of its own that `build(site)` holds, by the paper's formula."""

    def shared_counts(self, site: Site) -> Mapping[Hashable, int]:
        """Number of trainable parameters in each module that insertions of one rule share.

        By what the modules are alike in; `parameter_count` leaves them out.
        """
        return {}

    @abstractmethod
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> nn.Module:
        """Returns a fresh float32 module on the CPU for `site`; draws only from `generator`.

        `host` is the base's module at `site.path`, to be read and never changed; its
        parameters may be on the meta device unless the method copies them.
        """

    @property
    def words(self) -> tuple[int, ...] | None:
        """Token ids of a text from whose keys and values in the base its modules start, or None."""
        return None

    @property
    def ensemble_answer(self) -> str | None:
        """How the answers to an ensemble are made one, "mean" or "majority"; None where there is none."""
        return None

    def settled(self) -> "Method":
        """Returns the method that is left once training is over: what it builds is what is saved."""
        return self

    def settle(self, module: nn.Module) -> nn.Module:
        """Returns the module of `settled()` that computes what `module`, built by this method, does."""
        return module
