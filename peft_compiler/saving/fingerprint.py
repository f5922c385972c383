"""`Fingerprint`: tells whether a model is the one that an adapter was trained on."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self, cast

from pydantic import BaseModel, JsonValue
from torch import nn

from peft_compiler.plan import is_inserted
from peft_compiler.quantised import state_of

INCIDENTAL = frozenset(
    {
        "_attn_implementation",
        "_name_or_path",
        "architectures",
        "distributed_config",
        "dtype",
        "problem_type",
        "tokenizer_class",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
"""Fields of a transformers config that say where a model came from or how it runs, not what it computes.

`problem_type` is among them because a classifier fills it in when it first sees labels.
"""


class Fingerprint(BaseModel, frozen=True, extra="forbid"):
    """What identifies the base of a compiled model.

    Attributes:
        model: Name of its class.
        config: Its config, without what is incidental; empty where it has none.
        structure: SHA-256 of the names, shapes and dtypes of its parameters and buffers.
        weights: SHA-256 of the digests of its parameters and buffers.
    """

    model: str
    config: dict[str, JsonValue]
    structure: str
    weights: str

    @classmethod
    def of(cls, model: nn.Module, weights_digest: Mapping[str, str]) -> Self:
        """Returns the fingerprint of a model, compiled or not, whose weights had these digests."""
        to_dict: Callable[[], dict[str, Any]] = getattr(getattr(model, "config", None), "to_dict", dict)
        # JSON proper has no infinities: as themselves, they would be read back as null, another config.
        fields = json.dumps(_essential(to_dict()), default=str)
        return cls(
            model=type(model).__name__,
            config=json.loads(fields, parse_constant=str),
            structure=structure_of(model),
            weights=digest_of_weights(weights_digest),
        )

    def differences(self, other: Self) -> Iterator[str]:
        """Yields what `other` has and this one does not, but for the values of weights."""
        if self.model != other.model:
            yield f"the base is a {other.model}, the adapter's base was a {self.model}"
        for field in sorted(self.config.keys() | other.config.keys()):
            mine, others = self.config.get(field), other.config.get(field)
            if mine != others:
                yield f"the base's config has {field}={others!r}, the adapter's base had {mine!r}"
        if self.structure != other.structure:
            yield "the names, shapes or dtypes of the base's parameters are not those of the adapter's base"


def digest_of_weights(weights_digest: Mapping[str, str]) -> str:
    """Returns the SHA-256 of the digests of a base's parameters and buffers."""
    return _sha256(sorted(weights_digest.items()))


def structure_of(model: nn.Module) -> str:
    """Returns the SHA-256 of the names, shapes and dtypes of the base's parameters and buffers."""
    return _sha256(
        [name, list(tensor.shape), str(tensor.dtype)]
        for name, tensor in sorted(state_of(model).items())
        if not is_inserted(name)
    )


def _essential(fields: Any) -> Any:
    """Returns the fields of a config, and of the configs in it, without those that are incidental."""
    if not isinstance(fields, dict):
        return fields
    entries = cast("dict[Any, Any]", fields).items()
    return {str(name): _essential(value) for name, value in entries if name not in INCIDENTAL}


def _sha256(rows: Any) -> str:
    return hashlib.sha256(json.dumps(list(rows)).encode()).hexdigest()
