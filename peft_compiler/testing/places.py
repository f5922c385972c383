"""One place of every kind that a method may stand at, with the module that it joins and an input."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D
from typing_extensions import override

from peft_compiler.methods import Wiring
from peft_compiler.methods._routing import Router, giving
from peft_compiler.site import (
    Anchor,
    Core,
    Edge,
    Input,
    Projection,
    Projector,
    Role,
    Rows,
    Site,
    Source,
    Stack,
    Whole,
)

ANCHOR = Anchor((("Block.forward", 42),), "add")
ROWS = Rows.of([0, 1, 4, 5], total=6)
WIDTH = 7
"""Size of a state of the stack that the projections are in."""


class Experts(nn.Module):
    """Three matrices, stacked as (experts, out, in) or transposed."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 8, 6) if transposed else torch.randn(3, 6, 8))
        self.transposed = transposed

    @override
    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(x, self.weight if self.transposed else self.weight.mT)


@dataclass(frozen=True)
class Example:
    """A site, its host and what flows in."""

    site: Site
    host: nn.Module
    x: Tensor

    def wired(self, wiring: Wiring, inserted: nn.Module) -> Any:
        """Returns what the host and `inserted` compute together, written out once more for each wiring."""
        site, host, x = self.site, self.host, self.x
        y = host(x)
        match wiring:
            case Wiring.ROUTED:
                routers = [module for module in inserted.modules() if isinstance(module, Router)]
                states = torch.linspace(-1, 1, x.shape[:-1].numel() * WIDTH).view(*x.shape[:-1], WIDTH).sin()
                with giving({router: router(states) for router in routers}):
                    return self.wired(Wiring.BESIDE, inserted)
            case Wiring.BESIDE if site.rows is not None:
                delta = torch.zeros_like(y)
                delta[..., list(site.rows.indices)] = inserted(x)
                return y + delta
            case Wiring.BESIDE:
                return y + inserted(x)
            case Wiring.ON_WEIGHT:
                return functional_call(host, {"weight": inserted(host.weight)}, (x,))
            case Wiring.BEFORE:
                return host(inserted(x))
            case Wiring.AFTER if site.rows is not None:
                changed = y.clone()
                changed[..., list(site.rows.indices)] = inserted(y[..., list(site.rows.indices)])
                return changed
            case Wiring.AFTER | Wiring.AFTER_WITH_MASK:
                return inserted(y)
            case Wiring.PARALLEL | Wiring.AFTER_NORM:
                return y + inserted(x)
            case Wiring.REPLACE:
                return inserted(x)
            case Wiring.EXTEND_KV_BY_INPUT:
                return inserted(x)
            case Wiring.GATED_KV:
                prompts, gates = inserted()
                return y + prompts.sum() * gates.sum()
            case Wiring.EXTEND_KV | Wiring.EXTEND_INPUT | Wiring.EXCHANGE_INPUT:
                return inserted()


def projection(
    form: str,
    host: nn.Module,
    x: Tensor,
    *,
    rows: Rows | None = None,
    role: Role = Role.QUERY,
    widths: tuple[int, int] = (8, 6),
) -> Example:
    """Returns the example of a host that holds one matrix, called `weight`."""
    width_in, width_out = widths
    shape = tuple(host.get_parameter("weight").shape)
    bias = "bias" if getattr(host, "bias", None) is not None else None
    place = Projection("weight", form, rows=rows, bias=bias)
    width_out = width_out if rows is None else len(rows)
    return Example(
        Site(
            role,
            "place",
            place,
            width_in,
            width_out,
            shape=shape,
            module_type=type(host).__name__,
            batch_axis=0 if x.dim() > 2 else None,
            stack=Stack("", "", WIDTH),
        ),
        host,
        x,
    )


def examples() -> dict[str, Example]:
    """Returns an example of every kind of place by its name, with the same values each time."""
    with torch.random.fork_rng([]):  # pyright: ignore[reportUnknownMemberType]
        torch.manual_seed(0)
        return _drawn_examples()


def _drawn_examples() -> dict[str, Example]:
    x, wide = torch.randn(5, 4, 8), torch.randn(2, 8, 9)
    ids = torch.randint(0, 8, (5, 4))
    source = Source("child", 0)
    edge = Edge(ANCHOR, 1, source)
    projectors = Projector("k", None), Projector("v", None)
    core = Core(ANCHOR, 4, 2, 8, 6, False, *projectors, source=source, source_width=8)
    norm = nn.LayerNorm(8)
    nn.init.normal_(norm.weight)
    return {
        "linear": projection("linear", nn.Linear(8, 6), x),
        "linear without bias": projection("linear", nn.Linear(8, 6, bias=False), x),
        "rows of a linear": projection("linear", nn.Linear(8, 6), x, rows=ROWS),
        "transposed": projection("transposed", Conv1D(6, 8), x),
        "rows of a transposed": projection("transposed", Conv1D(6, 8), x, rows=ROWS),
        "embedding": projection("embedding", nn.Embedding(8, 6), ids, role=Role.EMBEDDING),
        "conv1d": projection("conv", nn.Conv1d(8, 6, 3, stride=2, padding=1), wide),
        "circular conv1d": projection("conv", nn.Conv1d(8, 6, 3, padding=2, padding_mode="circular"), wide),
        "grouped conv2d": projection(
            "conv",
            nn.Conv2d(8, 6, (3, 2), padding="same", dilation=(1, 2), groups=2),
            torch.randn(2, 8, 5, 5),
        ),
        "conv3d": projection("conv", nn.Conv3d(8, 6, 2, bias=False), torch.randn(2, 8, 3, 3, 3)),
        "experts": projection("experts", Experts(transposed=False), torch.randn(3, 4, 8), role=Role.UP),
        "rows of experts": projection(
            "experts", Experts(transposed=False), torch.randn(3, 4, 8), rows=ROWS, role=Role.UP
        ),
        "transposed experts": projection(
            "transposed_experts", Experts(transposed=True), torch.randn(3, 4, 8), role=Role.UP
        ),
        "rows of transposed experts": projection(
            "transposed_experts", Experts(transposed=True), torch.randn(3, 4, 8), rows=ROWS, role=Role.UP
        ),
        "head": projection("linear", nn.Linear(8, 6), x, role=Role.HEAD),
        "attention edge": Example(Site(Role.ATTENTION, "place", edge, 8, 8, batch_axis=0), nn.Identity(), x),
        "feed-forward edge": Example(
            Site(Role.FEED_FORWARD, "place", edge, 8, 8, batch_axis=0), nn.Identity(), x
        ),
        "mixer edge": Example(Site(Role.MIXER, "place", edge, 8, 8, batch_axis=0), nn.Identity(), x),
        "block": Example(Site(Role.BLOCK, "place", Whole(0), 8, 8, batch_axis=0), nn.Identity(), x),
        "core": Example(Site(Role.ATTENTION_CORE, "place", core, 24, 24, batch_axis=0), nn.Identity(), x),
        "input": Example(
            Site(Role.INPUT, "place", Input("0.weight", "input_ids", None, "place"), 8, 6, positions=64),
            nn.Sequential(nn.Embedding(8, 6)),
            ids,
        ),
        "norm": Example(Site(Role.NORM, "place", Whole(16, "weight", "bias"), 8, 8), norm, x),
        "norm without bias": Example(Site(Role.NORM, "place", Whole(8, "weight"), 8, 8), nn.RMSNorm(8), x),
        "norm of channels": Example(
            Site(Role.NORM, "place", Whole(16, "weight", "bias", channels_first=True), 8, 8),
            nn.GroupNorm(2, 8),
            wide,
        ),
        "key": projection("linear", nn.Linear(8, 6), x, role=Role.KEY),
        "rows of a value": projection("transposed", Conv1D(6, 8), x, rows=ROWS, role=Role.VALUE),
        "down": projection("linear", nn.Linear(8, 6), x, role=Role.DOWN),
        "transposed down": projection("transposed", Conv1D(6, 8), x, role=Role.DOWN),
        "conv1d down": projection("conv", nn.Conv1d(8, 6, 3, padding=1), wide, role=Role.DOWN),
        "down of experts": projection(
            "experts", Experts(transposed=False), torch.randn(3, 4, 8), role=Role.DOWN
        ),
        "down of transposed experts": projection(
            "transposed_experts", Experts(transposed=True), torch.randn(3, 4, 8), role=Role.DOWN
        ),
    }
