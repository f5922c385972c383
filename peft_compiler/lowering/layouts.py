"""Which values of a spread model lie on several processes, as one run shows, and what can join them there."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard

from peft_compiler.copies import holds_its_module
from peft_compiler.errors import LoweringError
from peft_compiler.lowering.edit import Spread
from peft_compiler.lowering.snapshots import evaluated
from peft_compiler.site import Core, Place, Projection, Site, Whole
from peft_compiler.spread import holds_spread, is_spread


class Layout(NamedTuple):
    """A place as the forward of one process has it, and what of its values lies on several."""

    place: Place
    spread: Spread | None


class Matrix(NamedTuple):
    """A spread weight (out, in), and the sizes of the last axes that its module was given, and gave."""

    name: str
    weight: DTensor
    entering: int
    leaving: int


def layouts_of(model: nn.Module, sites: Iterable[Site], example: Mapping[str, Any]) -> dict[Site, Layout]:
    """Returns the layout of each site of a model, which is run on `example` if a `tp_plan` spread it.

    Raises:
        LoweringError: If nothing can join a site; every reason is listed.
    """
    if not holds_spread(model):
        return {site: Layout(site.place, None) for site in sites}
    matrices = _matrices(model, example)
    sites = dict.fromkeys(sites)
    problems = [f"{site.name}: {problem}" for site in sites for problem in _problems(site, model, matrices)]
    if problems:
        raise LoweringError("the plan does not fit a model that a tp_plan spreads over processes", problems)
    return {site: _layout(site, model.get_submodule(site.path), matrices) for site in sites}


def _matrices(model: nn.Module, example: Mapping[str, Any]) -> dict[str, Matrix]:
    """Returns what is spread of each module that holds one weight and is called, by its path."""
    found: dict[str, Matrix] = {}

    def note(path: str, name: str, weight: DTensor) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                found[path] = Matrix(name, weight, args[0].shape[-1], output.shape[-1])

        return hook

    hooks: list[Any] = []
    for path, module in model.named_modules():
        matrices = {
            name: parameter
            for name, parameter in module.named_parameters(recurse=False)
            if is_spread(parameter) and parameter.dim() == 2
        }
        for name, weight in matrices.items() if len(matrices) == 1 else ():
            hooks.append(module.register_forward_hook(note(path, name, weight)))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), evaluated(model):
            model(**example)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _problems(site: Site, model: nn.Module, matrices: Mapping[str, Matrix]) -> Iterator[str]:
    """Yields why nothing can join a site of a spread model."""
    place, matrix = site.place, matrices.get(site.path)
    if not holds_its_module(model.get_submodule(site.path)):
        return
    if isinstance(place, Whole) and matrix is None and matrices:
        return  # what joins a norm is given one vector at a time, whosever it is
    if matrix is None or not isinstance(place, Projection) or place.anchor is not None:
        yield (
            f"the tp_plan gives this {site.module_type} the heads or experts of one process alone, so that "
            "what joins it would learn from these: leave it out"
        )
        return
    (lies,) = matrix.weight.placements
    is_plain = place.form in ("linear", "embedding") and not place.quantised and place.axes == (1, 1)
    if not is_plain or type(lies) not in (Shard, Replicate):
        yield (
            f"each process has other parts of its weight ({place.form}) than one piece of the rows or "
            "columns of a matrix: leave it out"
        )


def _layout(site: Site, host: nn.Module, matrices: Mapping[str, Matrix]) -> Layout:
    if isinstance(site.place, Core):
        for name, matrix in _parted_below(site.path, matrices):
            count = matrix.weight.device_mesh.size()
            heads, key_heads = site.place.heads // count, site.place.key_heads // count
            own = dataclasses.replace(site.place, heads=heads, key_heads=key_heads)
            return Layout(own, Spread(name, enters=False, leaves=True))
    matrix = matrices.get(site.path)
    if isinstance(site.place, Whole) and matrix is None and holds_its_module(host):
        processes = next(iter(matrices.values())).weight.device_mesh
        return Layout(site.place, Spread(None, enters=True, leaves=True, processes=processes))
    if matrix is None or not isinstance(site.place, Projection):
        return Layout(site.place, None)
    # What enters an embedding are ids, which every process has.
    axis_out = 1 if site.place.form == "embedding" else 0
    enters = axis_out == 0 and matrix.entering < matrix.weight.shape[1]
    leaves = matrix.leaving < matrix.weight.shape[axis_out]
    return Layout(site.place, Spread(matrix.name, enters, leaves))


def _parted_below(path: str, matrices: Mapping[str, Matrix]) -> Iterator[tuple[str, Matrix]]:
    """Yields what gives parts of its features below a module, by the name of its weight there."""
    prefix = f"{path}." if path else ""
    for each, matrix in matrices.items():
        if each.startswith(prefix) and matrix.leaving < matrix.weight.shape[0]:
            yield f"{each.removeprefix(prefix)}.{matrix.name}", matrix
