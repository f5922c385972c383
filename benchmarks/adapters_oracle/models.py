"""The bases that both sides build: tiny, random, without dropout, in double precision.

Imported under both versions of transformers, so it may import nothing of either side.
"""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

VOCABULARY, HIDDEN, LAYERS, HEADS, INNER, LENGTH, PADDED = 67, 32, 2, 4, 64, 7, 2
IMAGE, PATCH = 16, 8
NOISE = 0.15
"""Standard deviation of what every parameter is moved by, so that no norm is plain and no bias zero."""

_TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SIZES = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
}
_QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_BERT = _TOKENS | _SIZES | _QUIET | {"max_position_embeddings": 64}
_GPT2 = _TOKENS | {
    "n_embd": HIDDEN,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "n_positions": 64,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
_T5 = _TOKENS | {
    "d_model": HIDDEN,
    "d_kv": HIDDEN // HEADS,
    "d_ff": INNER,
    "num_layers": LAYERS,
    "num_heads": HEADS,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}

SPELT_OUT = {"attn_implementation": "eager"}
"""How attention is computed where a model says nothing else."""

MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "BERT": ("BertForSequenceClassification", "BertConfig", _BERT),
    "BERT, relu": ("BertForSequenceClassification", "BertConfig", _BERT | {"hidden_act": "relu"}),
    "BERT, masked": ("BertForMaskedLM", "BertConfig", _BERT),
    "RoBERTa": ("RobertaForSequenceClassification", "RobertaConfig", _BERT),
    "DistilBERT": (
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        _TOKENS
        | {
            "dim": HIDDEN,
            "n_layers": LAYERS,
            "n_heads": HEADS,
            "hidden_dim": INNER,
            "max_position_embeddings": 64,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "seq_classif_dropout": 0.0,
        },
    ),
    "GPT-2": ("GPT2LMHeadModel", "GPT2Config", _GPT2),
    "GPT-2, padded on the right": ("GPT2LMHeadModel", "GPT2Config", _GPT2),
    "GPT-2, sdpa": ("GPT2LMHeadModel", "GPT2Config", _GPT2 | {"attn_implementation": "sdpa"}),
    "Llama": (
        "LlamaForCausalLM",
        "LlamaConfig",
        _TOKENS | _SIZES | {"num_key_value_heads": 2, "max_position_embeddings": 64},
    ),
    "BART": (
        "BartForConditionalGeneration",
        "BartConfig",
        _TOKENS
        | {
            "d_model": HIDDEN,
            "encoder_layers": LAYERS,
            "decoder_layers": LAYERS,
            "encoder_attention_heads": HEADS,
            "decoder_attention_heads": HEADS,
            "encoder_ffn_dim": INNER,
            "decoder_ffn_dim": INNER,
            "max_position_embeddings": 64,
            "decoder_start_token_id": 2,
            "forced_eos_token_id": 2,
            "dropout": 0.0,
        },
    ),
    "T5": ("T5ForConditionalGeneration", "T5Config", _T5),
    "T5, gated": ("T5ForConditionalGeneration", "T5Config", _T5 | {"feed_forward_proj": "gated-gelu"}),
    "ViT": (
        "ViTForImageClassification",
        "ViTConfig",
        _SIZES | _QUIET | {"image_size": IMAGE, "patch_size": PATCH},
    ),
}
"""Class, configuration and settings of each."""

SEQ2SEQ = ("BART", "T5", "T5, gated")
PADDED_ON_THE_LEFT = ("GPT-2", "GPT-2, sdpa")
"""Llama is not: its softmax is in single precision, in which a row without a token to see is not a number."""


def build(name: str) -> nn.Module:
    """Returns the model with new weights, to be moved by `stir`."""
    model, config, settings = MODELS[name]
    return getattr(transformers, model)(getattr(transformers, config)(**SPELT_OUT | settings)).double().eval()


def load(name: str, folder: Path) -> nn.Module:
    """Returns the model with the weights of a folder; transformers translates names that have changed."""
    model, _, settings = MODELS[name]
    attention = (SPELT_OUT | settings)["attn_implementation"]
    kind = getattr(transformers, model)
    return kind.from_pretrained(folder, dtype=torch.float64, attn_implementation=attention).eval()


def stir(model: nn.Module) -> None:
    """Moves every parameter by some noise."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=NOISE)


def inputs(name: str) -> dict[str, Tensor]:
    """Returns one batch, whose first row is padded."""
    draws = torch.Generator().manual_seed(0)
    if name == "ViT":
        pixels = torch.randn(2, 3, IMAGE, IMAGE, generator=draws, dtype=torch.float64)
        return {"pixel_values": pixels}
    ids = torch.randint(3, VOCABULARY, (2, LENGTH), generator=draws)
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    padded = slice(0, PADDED) if name in PADDED_ON_THE_LEFT else slice(LENGTH - PADDED, LENGTH)
    mask[0, padded] = 0
    batch = {"input_ids": ids * mask, "attention_mask": mask}
    if name in SEQ2SEQ:
        batch["decoder_input_ids"] = torch.randint(3, VOCABULARY, (2, LENGTH - 2), generator=draws)
    return batch


def seen(logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Returns the logits at positions that are not padding, as one row.

    What a model computes at padding is undefined and differs between versions of transformers.
    """
    mask = batch.get("attention_mask")
    if "decoder_input_ids" in batch or mask is None or logits.dim() == 2:
        return logits.flatten()
    # A library that gives the logits of prompts too gives them first.
    return logits[:, -mask.shape[1] :][mask.bool()].flatten()


def loss_of(logits: Tensor) -> Tensor:
    """Returns the fixed loss whose gradients are compared."""
    return (logits * torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype)).sum()
