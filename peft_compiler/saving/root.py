"""`Root`: the class of what `compile` returns, which reads and writes checkpoints."""

import functools
from typing import Any

from torch import nn
from typing_extensions import override

from peft_compiler.errors import InterchangeError
from peft_compiler.lowering.rewritten import Rewritten
from peft_compiler.saving.checkpoint import ENTRY, left_out, problems_of
from peft_compiler.saving.pretrained import Pretrained


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
    bases = (Root, rewritten)
    if hasattr(rewritten.original, "save_pretrained"):
        bases = (Pretrained, *bases)
    metaclass: Any = type(rewritten)
    return metaclass(rewritten.__name__, bases, own)
