"""One spec for each method, for any model of language with two layers of 32 features."""

from collections.abc import Mapping
from typing import Any

METHODS: Mapping[str, str | dict[str, Any]] = {
    "lora": "lora r=2 on linear",
    "dora": "dora r=2 on q, v",
    "adalora": "adalora r=2 on q, v",
    "vera": "vera r=2 on q, v",
    "randlora": "randlora r=2 on q, v",
    "loha": "loha r=2 on q, v",
    "lokr": "lokr r=2 on q, v",
    "oft": "oft block_size=4 on q, v",
    "boft": "boft block_size=4 factors=2 on q, v",
    "hra": "hra r=2 on q, v",
    "fourierft": "fourierft n=9 on q, v",
    "miss": "miss r=2 on q, v",
    "x_lora": "x-lora r=2 train_adapters=true on q, v",
    "gated_lora": "gated lora r=2 on q, v",
    "ia3": "ia3 on k, v, down",
    "bitfit": "bitfit add=true",
    "ssf": "ssf on q, up",
    "adapter": "adapters width=4",
    "pfeiffer_adapter": "pfeiffer adapters width=4",
    "parallel_adapter": "parallel adapters width=4",
    "gated_adapter": "gated adapters width=4",
    "compacter": {"version": 1, "rules": [{"use": {"compacter": {"width": 4}}, "where": {"role": "ffn"}}]},
    "adapter_fusion": {
        "version": 1,
        "rules": [{"use": {"adapter_fusion": {"width": 4}}, "where": {"role": "ffn"}}],
    },
    "invertible_adapter": "invertible adapter width=4",
    "prompt": "prompt length=3",
    "p_tuning": "p-tuning length=3 encoder=mlp",
    "prefix": "prefix length=3",
    "gated_prefix": "gated prefix length=3",
    "deep_prompts": "deep prompts length=3",
    "llama_adapter": "llama-adapter length=3",
    "loreft": "loreft r=2 first=1 last=1",
    "direft": "direft r=2 first=1 last=1",
    "trainable_tokens": {"version": 1, "rules": [{"use": {"trainable_tokens": {"tokens": [4, 5, 53, 56]}}}]},
    "trained_copy": "train head, norm",
    "all together": "lora r=2 on q, v; adapters width=4 after ffn; deep prompts length=2; prompt length=2",
}
"""Specs by the name of the method, as `peft_compiler.methods` has it, and one with several of them."""
