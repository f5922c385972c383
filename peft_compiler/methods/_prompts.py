"""Trained keys and values of one attention, as they are or as an MLP gives them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from peft_compiler.methods._shared import Shared
from peft_compiler.site import Core, Site

KeysAndValues = tuple[
    Float[Tensor, "*batch key_heads length key_width"], Float[Tensor, "*batch key_heads length value_width"]
]


MLP_WIDTH = 512
"""Units between the two layers of the MLP: the authors' for table-to-text (arXiv:2101.00190, section 4.3)."""


def core_of(site: Site) -> Core:
    """Returns the place of a site that is the core of an attention."""
    assert isinstance(site.place, Core)
    return site.place


def width_of(site: Site) -> int:
    """Returns how many numbers the keys and values of an attention are at one position."""
    core = core_of(site)
    return core.key_heads * (core.key_width + core.value_width)


def longer_than_any_input(length: int, site: Site) -> Iterator[str]:
    """Yields why there cannot be so many prompts at one attention."""
    if site.positions is not None and length > site.positions:
        yield f"length={length} is beyond the {site.positions} positions of the longest input; take less"


def with_words(settings: Any, *kinds: str) -> Any:
    """Returns `settings` with what `init: {text: ...}` holds, as a file may say it, in place of `init`."""
    start = settings.get("init") if isinstance(settings, Mapping) else None
    if not isinstance(start, Mapping) or not start or set(start) - set(kinds) or set(start) & set(settings):
        return settings
    return {**{name: value for name, value in settings.items() if name != "init"}, **start}


def words_in_schema(*kinds: str) -> Callable[[dict[str, Any]], None]:
    """Returns what lets the JSON schema of a method take `init: {text: ...}`, for all `kinds`."""

    def extend(schema: dict[str, Any]) -> None:
        fields = schema["properties"]
        start = {
            "type": "object",
            "properties": {kind: fields[kind] for kind in kinds},
            "additionalProperties": False,
            "minProperties": 1,
        }
        plain = fields.get("init")
        fields["init"] = start if plain is None else {"anyOf": [plain, start]}

    return extend


class StartsAtWords(nn.Module, ABC):
    """A module that can start from the keys and values which the base computes for words."""

    @abstractmethod
    def start_at(
        self,
        keys: Float[Tensor, "key_heads length key_width"],
        values: Float[Tensor, "key_heads length value_width"],
    ) -> None:
        """Sets what training starts at."""


class Prompts(StartsAtWords):
    """`keys` of shape (key heads, length, key width) and `values` of shape (key heads, length, value width).

    Not the identity at initialisation: queries attend to the prompts from the start.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys = nn.Parameter(keys)
        self.values = nn.Parameter(values)

    @classmethod
    def drawn(cls, site: Site, length: int, scale: float, generator: torch.Generator) -> "Prompts":
        """Returns prompts for `site` with normal values of standard deviation `scale`."""
        core = core_of(site)
        keys = torch.empty(core.key_heads, length, core.key_width)
        values = torch.empty(core.key_heads, length, core.value_width)
        keys.normal_(std=scale, generator=generator)
        values.normal_(std=scale, generator=generator)
        return cls(keys, values)

    @override
    def start_at(self, keys: Tensor, values: Tensor) -> None:
        with torch.no_grad():
            self.keys.copy_(keys)
            self.values.copy_(values)

    @override
    def forward(self) -> KeysAndValues:
        return self.keys.clone(), self.values.clone()

    @override
    def extra_repr(self) -> str:
        return f"keys={tuple(self.keys.shape)}, values={tuple(self.values.shape)}"


class Trunk(Shared):
    """tanh(W E + b), of shape (length, width), from which every attention takes its prompts.

    `embeddings` E of shape (length, d) is the small matrix P' of arXiv:2101.00190, section 4.3, as wide
    as in the authors' code (the paper's own is `width` wide), and `down`, with W of shape
    (width, d), the first layer of its MLP. All attentions of one kind share it.
    """

    def __init__(self, site: Site, length: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.alike = self.alike_at(site)
        self.embeddings = nn.Parameter(torch.empty(length, site.width_out).normal_(generator=generator))
        self.down = linear(site.width_out, width, generator)

    @staticmethod
    def alike_at(site: Site) -> Hashable:
        """Returns what is equal at all sites that share a trunk."""
        return site.tower, site.cross, site.width_out

    @override
    def forward(self) -> Float[Tensor, "length width"]:
        return torch.tanh(self.down(self.embeddings))


class Reparametrised(StartsAtWords):
    """Prompts as the rest of the MLP gives them: up(trunk()), cut into the keys and values of the heads.

    The weight of `up` has the shape (c, width), with c = key heads · (key width + value width): the
    rows of the MLP's last layer that belong to this attention.
    """

    def __init__(self, site: Site, trunk: Trunk, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.trunk = trunk
        self.up = linear(width, width_of(site), generator)
        core = core_of(site)
        self.heads = core.key_heads
        self.widths = [core.key_width, core.value_width]

    @override
    def start_at(self, keys: Tensor, values: Tensor) -> None:
        """Solves `up` for the given keys and values: exact, as the trunk is at least as wide as long."""
        joint = torch.cat([keys, values], -1).transpose(0, 1).flatten(1)
        with torch.no_grad():
            self.up.bias.zero_()
            self.up.weight.copy_(torch.linalg.lstsq(self.trunk(), joint.to(self.up.weight)).solution.T)

    @override
    def forward(self) -> KeysAndValues:
        joint = self.up(self.trunk()).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        keys, values = joint.split(self.widths, -1)
        return keys.contiguous(), values.contiguous()

    def settled(self) -> Prompts:
        """Returns the prompts that it gives, by themselves."""
        with torch.no_grad():
            return Prompts(*self())


def linear(d_in: int, d_out: int, generator: torch.Generator) -> nn.Linear:
    """Returns a linear that starts as torch's own does, with draws from `generator` alone."""
    # On "meta" first: nn.Linear's own initialisation draws from the global generator.
    layer = nn.Linear(d_in, d_out, device="meta").to_empty(device="cpu")
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -(d_in**-0.5), d_in**-0.5, generator=generator)
    return layer


def idle_width(width: int | None, reparametrised: bool) -> Iterator[str]:
    """Yields why a width has nothing to be the width of."""
    if width is not None and not reparametrised:
        yield f"width={width} is that of an MLP, which there is with reparametrised=true only"


def build_prompts(
    site: Site, length: int, mlp: int | None, generator: torch.Generator, scale: float = 1.0
) -> Prompts | Reparametrised:
    """Returns fresh prompts for one attention, given by an MLP of that width where there is one."""
    if mlp is None:
        return Prompts.drawn(site, length, scale, generator)
    return Reparametrised(site, Trunk(site, length, mlp, generator), mlp, generator)


def prompts_count(site: Site, length: int, mlp: int | None) -> int:
    """Returns how many parameters `build_prompts` gives one attention, without the trunk that many share."""
    return (length if mlp is None else mlp + 1) * width_of(site)


def trunk_counts(site: Site, length: int, mlp: int | None) -> Mapping[Hashable, int]:
    """Returns how many parameters the trunk has, by what is equal at all sites that share it."""
    if mlp is None:
        return {}
    return {Trunk.alike_at(site): length * site.width_out + (site.width_out + 1) * mlp}
