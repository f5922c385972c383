"""One case: a configuration of the adapters library, the same as a spec of ours, and on which models.

Imported on both sides, so it may import nothing of either.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.adapters_oracle.models import MODELS

Settings = Mapping[str, Any]
POST_NORM = ("BERT", "RoBERTa", "DistilBERT", "BART")
PRE_NORM = ("GPT-2", "Llama", "T5", "ViT")
EVERY = (*POST_NORM, *PRE_NORM)


@dataclass(frozen=True)
class Case:
    """One comparison, on several models.

    Attributes:
        method: What the results call it.
        configs: Classes of the library's configurations and their settings, together one adapter.
        spec: What is compiled here.
        models: Names of `MODELS`.
        fused: Whether two adapters are fused.
        because: Why the two differ, where they do.
        change: What of the library is changed before it runs: a name in `changes.CHANGES`. Such a
            case shows that the reason of the one before it is the only one.
    """

    method: str
    configs: Mapping[str, Settings]
    spec: Any
    models: tuple[str, ...] = EVERY
    fused: bool = False
    because: str | None = None
    change: str | None = None

    def __post_init__(self) -> None:
        unknown = set(self.models) - set(MODELS)
        assert not unknown, f"{self.method} names models that there are not: {unknown}"


BOTTLENECK = {"reduction_factor": 8}
WIDTH = 4
FLAT = {"flat": True, "prefix_length": 3}
MLP = {"prefix_length": 3, "bottleneck_size": 6}
LORA = {"r": 3, "alpha": 6}
EVERY_MATRIX = LORA | {"attn_matrices": ["q", "k", "v"], "intermediate_lora": True, "output_lora": True}
VERA = {"r": 3, "alpha": 3, "vera_d": 0.5, "vera_b": 0.5}
REFT = {"r": 3, "dropout": 0.0, "prefix_positions": 2, "tied_weights": True}
AROUND = {"original_ln_after": False, "residual_before_ln": False}
HOULSBY = {"adapter": {"width": WIDTH, "activation": "silu"}}
AT_SELF = {"role": "attention", "attention": "self"}
PARALLEL = f"parallel adapters width={WIDTH}"
FLAT_PREFIX = "prefix tuning length=3 reparametrised=false"
GATED = {"use_gating": True}
UNIPELT = (
    "gated LoRA r=3 gate=sequence on q,v; gated prefix length=3 width=6; "
    f"gated adapters width={WIDTH} activation=relu gate=sequence after FFN"
)
