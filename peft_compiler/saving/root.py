"""`Root`: the class of what `compile` returns, which reads and writes checkpoints."""

import functools
import sys
from typing import Any

from torch import nn
from typing_extensions import override

from peft_compiler.errors import InterchangeError
from peft_compiler.lowering.rewritten import Rewritten
from peft_compiler.saving.checkpoint import ENTRY, checkpoint, left_out, problems_of, says_no_model
from peft_compiler.saving.pretrained import Pretrained
from peft_compiler.saving.save import owned

TRAINER = "transformers.trainer"
"""The module of transformers' Trainer."""


class Root(Rewritten):
    """Comes before the class of a rewritten root: takes states of insertions alone, none of another."""

    @override
    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # torch calls this on its way down from whatever module is above, before it fills in what is below.
        given = {
            name.removeprefix(prefix): tensor
            for name, tensor in state_dict.items()
            if name.startswith(prefix)
        }
        if given or not prefix:
            assigned = bool(local_metadata.get("assign_to_params_buffers"))
            for name in [name for name, tensor in given.items() if says_no_model(name, tensor.shape)]:
                del given[name], state_dict[prefix + name]
            problems = [*problems_of(self, given, assigned)]
            if problems:
                raise InterchangeError("the state does not belong to this compiled model", problems)
            state_dict.pop(prefix + ENTRY, None)
            given.pop(ENTRY, None)
            state_dict.update({prefix + name: tensor for name, tensor in left_out(self, given).items()})
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    @override
    def __reduce_ex__(self, protocol: Any) -> Any:
        make, arguments, state = super().__reduce_ex__(protocol)
        return _blank, (make, arguments), state


class PlainRoot(Root):
    """Comes before the class of a root that is no model of transformers."""

    @override
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        # A Trainer asks a plain module for its state, which it writes as it is; there is nothing else
        # that it asks, and nothing by which it could be told what to leave out.
        if sys._getframe(1).f_globals.get("__name__") == TRAINER:  # pyright: ignore[reportPrivateUsage]
            return owned(checkpoint(self))
        return super().state_dict(*args, **kwargs)


def as_root(compiled: nn.Module) -> None:
    """Changes the class of a compiled model, in place, to one that reads and writes checkpoints."""
    assert isinstance(compiled, Rewritten)
    compiled.__class__ = _class_for(type(compiled))


def _blank(make: Any, arguments: Any) -> nn.Module:
    module = make(*arguments)
    as_root(module)
    return module


@functools.cache
def _class_for(rewritten: type[Rewritten]) -> type[Root]:
    own = {name: getattr(rewritten, name) for name in ("__module__", "__qualname__", "__doc__")}
    saves_itself = hasattr(rewritten.original, "save_pretrained")
    bases = (Pretrained, Root, rewritten) if saves_itself else (PlainRoot, rewritten)
    metaclass: Any = type(rewritten)
    return metaclass(rewritten.__name__, bases, own)
