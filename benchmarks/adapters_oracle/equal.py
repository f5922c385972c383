"""What both libraries compute alike, as they are."""

from benchmarks.adapters_oracle.case import (
    AROUND,
    AT_SELF,
    BOTTLENECK,
    EVERY_MATRIX,
    FLAT,
    FLAT_PREFIX,
    GATED,
    HOULSBY,
    LORA,
    MLP,
    PARALLEL,
    POST_NORM,
    REFT,
    UNIPELT,
    VERA,
    WIDTH,
    Case,
)

EQUAL = (
    Case(
        "Houlsby (double)",
        {"DoubleSeqBnConfig": BOTTLENECK},
        {"rules": [{"use": HOULSBY, "where": AT_SELF}, {"use": HOULSBY, "where": {"role": "ffn"}}]},
    ),
    Case(
        "Houlsby, at cross-attention too",
        {"DoubleSeqBnConfig": BOTTLENECK | {"cross_adapter": True}},
        f"adapters width={WIDTH} activation=silu after attention and FFN",
        ("BART", "T5"),
    ),
    Case(
        "Bottleneck with a norm of its own (`ln_before`)",
        {"DoubleSeqBnConfig": BOTTLENECK | {"ln_before": True, "mh_adapter": False}},
        f"adapters width={WIDTH} activation=silu layer_norm=true after FFN",
    ),
    Case(
        "Bottleneck on the block (`original_ln_after=False`)",
        {"SeqBnConfig": BOTTLENECK | AROUND},
        f"adapters width={WIDTH} activation=relu after block",
    ),
    Case(
        "Pfeiffer (seq: `original_ln_before=True`)",
        {"SeqBnConfig": BOTTLENECK},
        f"pfeiffer adapters width={WIDTH}",
    ),
    Case("Parallel", {"ParBnConfig": BOTTLENECK | {"scaling": 1.0}}, PARALLEL),
    Case("Scaled parallel", {"ParBnConfig": BOTTLENECK}, f"{PARALLEL} scale=4"),
    Case(
        "Scaled parallel, learned",
        {"ParBnConfig": BOTTLENECK | {"scaling": "learned"}},
        f"{PARALLEL} scale=learned",
    ),
    Case("Compacter", {"CompacterConfig": BOTTLENECK}, f"compacter adapters width={WIDTH}"),
    Case(
        "Compacter++, where its paper puts it",
        {"CompacterConfig": BOTTLENECK | {"mh_adapter": False}},
        f"compacter adapters width={WIDTH} after FFN",
    ),
    Case(
        "Prefix tuning, flat",
        {"PrefixTuningConfig": FLAT},
        FLAT_PREFIX,
        (*POST_NORM, "GPT-2", "Llama", "ViT"),
    ),
    Case(
        "Prefix tuning with the MLP",
        {"PrefixTuningConfig": MLP},
        "prefix tuning length=3 width=6",
        (*POST_NORM, "GPT-2", "Llama", "ViT"),
    ),
    Case(
        "MAM",
        {"PrefixTuningConfig": MLP, "ParBnConfig": BOTTLENECK},
        f"prefix tuning length=3 width=6; {PARALLEL} scale=4",
        (*POST_NORM, "GPT-2", "Llama", "ViT"),
    ),
    Case("LoRA on q,v", {"LoRAConfig": LORA}, "LoRA r=3 alpha=6 on q,v"),
    Case("LoRA on q,k,v, up and down", {"LoRAConfig": EVERY_MATRIX}, "LoRA r=3 alpha=6 on q,k,v,up,down"),
    Case("VeRA on q,v", {"VeraConfig": VERA}, "VeRA r=3 on q,v", (*POST_NORM, "T5", "ViT")),
    Case("IA3", {"IA3Config": {}}, "IA3", ("BERT, relu", "T5", "T5, gated")),
    Case("IA3 on k,v", {"IA3Config": {"intermediate_lora": False}}, "IA3 on k,v"),
    Case("LoReFT", {"LoReftConfig": REFT}, "loreft r=3 first=2"),
    Case("NoReFT", {"NoReftConfig": REFT}, "loreft r=3 first=2 orthonormal=false"),
    Case("DiReFT", {"DiReftConfig": REFT}, "direft r=3 first=2"),
    Case(
        "LoReFT, first and last",
        {"LoReftConfig": REFT | {"suffix_positions": 1}},
        "loreft r=3 first=2 last=1",
        ("BERT", "RoBERTa", "DistilBERT", "GPT-2", "Llama", "ViT"),
    ),
    Case("AdapterFusion", {"SeqBnConfig": BOTTLENECK}, f"adapter fusion width={WIDTH}", fused=True),
    Case(
        "Invertible adapters (NICE) with Pfeiffer's",
        {"SeqBnInvConfig": BOTTLENECK},
        f"pfeiffer adapters width={WIDTH}; invertible adapters width=8 on embedding",
        ("Llama",),
    ),
    Case(
        "UniPELT",
        {
            "PrefixTuningConfig": MLP | GATED,
            "SeqBnConfig": BOTTLENECK | GATED,
            "LoRAConfig": LORA | GATED,
        },
        UNIPELT,
        (*POST_NORM, "GPT-2, padded on the right", "Llama", "ViT"),
    ),
)
"""Those that are to be equal as they are."""
