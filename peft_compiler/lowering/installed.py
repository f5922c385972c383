"""What others did to a model before it is compiled: hooks around forwards, weights elsewhere."""

from collections.abc import Iterator
from types import MethodType

from torch import nn
from torch.distributed.tensor import DTensor


def spread(model: nn.Module) -> Iterator[str]:
    """Yields the weights that are spread over devices: what reads them belongs to this very model."""
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            yield (
                f"{name}: it is spread over devices already, by a tp_plan or fully_shard: compile the whole "
                "model first, and call fully_shard on what comes back"
            )


def offloaded(model: nn.Module) -> Iterator[str]:
    """Yields the weights that are kept elsewhere: a model that is on the meta device as a whole has none."""
    named = [*model.named_parameters()]
    away = [name for name, parameter in named if parameter.is_meta]
    if len(away) < len(named) or any("forward" in vars(module) for module in model.modules()):
        yield from (f"{name}: it is offloaded: compile the model first, then dispatch it" for name in away)


def hand_over(module: nn.Module, before: type[nn.Module], after: type[nn.Module]) -> None:
    """Lets whatever kept the module's forward, to call it, keep that of its new class."""
    for name, value in vars(module).items():
        if isinstance(value, MethodType) and value.__self__ is module and value.__func__ is before.forward:
            vars(module)[name] = MethodType(after.forward, module)
