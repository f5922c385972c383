"""What others did to a model before it is compiled: hooks around forwards, weights elsewhere."""

from collections.abc import Iterator
from types import MethodType

from torch import nn
from torch.distributed.fsdp import FSDPModule

from peft_compiler.copies import holds_its_module
from peft_compiler.spread import is_spread


def spread(model: nn.Module) -> Iterator[str]:
    """Yields the weights that are spread over devices otherwise than by a `tp_plan` alone.

    A `tp_plan` puts a forward on each module with such weights, which is known how to go on with.
    """
    sharded = {path for path, module in model.named_modules() if isinstance(module, FSDPModule)}
    for path, module in model.named_modules():
        planned = holds_its_module(module) and path not in sharded
        for name, parameter in module.named_parameters(path, recurse=False):
            if is_spread(parameter) and not (planned and parameter.device_mesh.ndim == 1):
                yield (
                    f"{name}: it is spread over devices already, and not by a tp_plan alone: compile the "
                    "whole model first, and call fully_shard on what comes back"
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
