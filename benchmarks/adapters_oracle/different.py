"""Where the adapters library differs, each with the reason, and with what proves that it is the only one."""

from dataclasses import replace

from benchmarks.adapters_oracle.case import (
    BOTTLENECK,
    FLAT,
    FLAT_PREFIX,
    GATED,
    LORA,
    MLP,
    POST_NORM,
    REFT,
    UNIPELT,
    VERA,
    WIDTH,
    Case,
)


def with_change(case: Case, change: str) -> tuple[Case, Case]:
    """Returns the case, and the same with the library changed, which is to be equal."""
    return case, replace(case, because=None, change=change)


DIFFERENT = (
    Case(
        "Compacter++, as the library has it",
        {"CompacterPlusPlusConfig": BOTTLENECK},
        f"compacter adapters width={WIDTH} after FFN",
        because="the library puts it where Pfeiffer's adapter stands, on the normalised sum; the paper puts "
        "it after the feed-forward layer, as Compacter, and there both are equal (above)",
    ),
    *with_change(
        Case(
            "Prefix tuning, flat",
            {"PrefixTuningConfig": FLAT},
            FLAT_PREFIX,
            ("T5",),
            because="the library counts the prefix as positions, so that every relative position of two "
            "tokens grows by its length",
        ),
        "position biases stay where they are",
    ),
    *with_change(
        Case(
            "Prefix tuning with the MLP",
            {"PrefixTuningConfig": MLP},
            "prefix tuning length=3 width=6",
            ("T5",),
            because="the same",
        ),
        "position biases stay where they are",
    ),
    Case(
        "Prefix tuning, flat, attention as one op",
        {"PrefixTuningConfig": FLAT},
        FLAT_PREFIX,
        ("GPT-2, sdpa",),
        because="transformers 4.57 hands masks of booleans to the op, true where a token is seen; the "
        "library extends them as if true were masked, and no token sees the prefix: it changes nothing",
    ),
    *with_change(
        Case(
            "DoRA on q,v",
            {"DoRAConfig": LORA},
            "DoRA r=3 alpha=6 on q,v",
            (*POST_NORM, "Llama", "T5", "ViT"),
            because="the library divides by the norm of W + BA though it adds alpha / r · BA, scales the "
            "bias too, and lets gradients through the norm, which section 4.3 takes as a constant",
        ),
        "DoRA is its paper's",
    ),
    *with_change(
        Case(
            "IA3",
            {"IA3Config": {}},
            "IA3",
            (*POST_NORM, "GPT-2", "ViT"),
            because="the library scales what enters the activation, the paper what leaves it; with relu, or "
            "where a gate follows, that is the same (above)",
        ),
        "IA3 scales behind the activation",
    ),
    Case(
        "IA3",
        {"IA3Config": {}},
        "IA3",
        ("Llama",),
        because="the library scales what the feed-forward layer gives, the paper its inner activation",
    ),
    *with_change(
        Case(
            "Prompt tuning",
            {"PromptTuningConfig": {"prompt_length": 3}},
            "prompt length=3",
            ("BERT, masked",),
            because="the library puts the prompt behind positions and norm of the embeddings, and the tokens "
            "keep their positions; here, as in the paper, it stands before the words",
        ),
        "the prompt is embedded with the words",
    ),
    *with_change(
        Case(
            "Invertible adapters (NICE) with Pfeiffer's",
            {"SeqBnInvConfig": BOTTLENECK},
            f"pfeiffer adapters width={WIDTH}; invertible adapters width=8 on embedding",
            ("BERT", "RoBERTa", "DistilBERT"),
            because="the library's stands behind positions and norm, ours on the word embeddings",
        ),
        "the coupling is on the word embeddings",
    ),
    *with_change(
        Case(
            "Invertible adapters (NICE) and their inverse",
            {"SeqBnInvConfig": BOTTLENECK},
            f"pfeiffer adapters width={WIDTH}; invertible adapters width=8 on embedding, head",
            ("Llama",),
            because="the library has the inverse in heads of its own only, not before transformers' head",
        ),
        "the inverse stands before the head",
    ),
    Case(
        "LoReFT, first and last",
        {"LoreftConfig": REFT | {"suffix_positions": 1}},
        "loreft r=3 first=2 last=1",
        ("BART", "T5"),
        because="the library takes the last positions of the encoder's input in the decoder too, where they "
        "are beyond the end: it does not run",
    ),
    Case(
        "UniPELT, padding on the left",
        {
            "PrefixTuningConfig": MLP | GATED,
            "SeqBnConfig": BOTTLENECK | GATED,
            "LoRAConfig": LORA | GATED,
        },
        UNIPELT,
        ("GPT-2",),
        because="gates average over padding too, and what a model computes there is undefined, as no token "
        "is seen from there; padded on the right both are equal (above)",
    ),
    Case(
        "Invertible adapters (GLOW)",
        {"SeqBnInvConfig": BOTTLENECK | {"inv_adapter": "glow"}},
        f"pfeiffer adapters width={WIDTH}",
        ("Llama",),
        because="the library's does not run; there is none here",
    ),
    Case(
        "VeRA on q,v",
        {"VeraConfig": VERA},
        "VeRA r=3 on q,v",
        ("GPT-2", "Llama"),
        because="the library's does not run on a fused matrix, nor where values are narrower than queries: "
        "it has one pair of random matrices for all",
    ),
    Case(
        "DoRA on q,v",
        {"DoRAConfig": LORA},
        "DoRA r=3 alpha=6 on q,v",
        ("GPT-2",),
        because="the library's does not run on a fused matrix",
    ),
)
"""Those with a reason to differ; one with a change follows that whose reason it removes."""
