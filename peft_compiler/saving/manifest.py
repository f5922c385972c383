"""`Manifest`: what `adapter.json` says, next to the tensors in `adapter.safetensors`."""

from typing import Literal

from pydantic import BaseModel, JsonValue

from peft_compiler.saving.fingerprint import Fingerprint

MANIFEST = "adapter.json"
TENSORS = "adapter.safetensors"
CHECKPOINT = "model.safetensors"
"""The tensors of a checkpoint folder, next to the manifest: trainers look for no other name."""


class Manifest(BaseModel, frozen=True, extra="forbid"):
    """How the adapter came about, enough to compile it again.

    Attributes:
        format: Version of this format.
        spec: The spec.
        seed: What initial values were drawn from.
        plan: Digest of the plan.
        base: What it was trained on.
    """

    format: Literal[1] = 1
    spec: dict[str, JsonValue]
    seed: int
    plan: str
    base: Fingerprint
