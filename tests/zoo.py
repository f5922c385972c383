"""Tiny random models that every test shares: 2 layers, hidden size 32, 4 heads, 99 tokens.

`build(name)` gives the model, `inputs(name)` what its forward takes. The same name gives
the same weights and inputs every time, and the global random state is left alone.
"""

from typing import Any

import torch
import transformers
from torch import Tensor, nn

VOCABULARY, HIDDEN, LAYERS, HEADS, INNER = 99, 32, 2, 4, 64
CHANNELS, IMAGE, PATCH = 3, 16, 4
MELS, FRAMES = 8, 40

_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LLAMA = _TOKENS | {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
}
_GROUPED = _LLAMA | {"num_key_value_heads": 2}
_BERT = _LLAMA | {"max_position_embeddings": 128}
_FALCON = _TOKENS | {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
}
_BART = _TOKENS | {
    "vocab_size": VOCABULARY,
    "d_model": HIDDEN,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": INNER,
    "decoder_ffn_dim": INNER,
    "decoder_start_token_id": 2,
}

_CAUSAL: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        _TOKENS
        | {
            "vocab_size": VOCABULARY,
            "n_embd": HIDDEN,
            "n_layer": LAYERS,
            "n_head": HEADS,
            "n_positions": 128,
        },
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", _GROUPED),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", _GROUPED | {"head_dim": 8}),
    "gemma3": (
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        _GROUPED
        | {"head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "mistral": ("MistralForCausalLM", "MistralConfig", _GROUPED | {"sliding_window": 4}),
    "mixtral": (
        "MixtralForCausalLM",
        "MixtralConfig",
        _GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", _GROUPED),
    "falcon_multi_query": (
        "FalconForCausalLM",
        "FalconConfig",
        _FALCON | {"multi_query": True, "new_decoder_architecture": False, "alibi": False},
    ),
    "falcon_alibi": (
        "FalconForCausalLM",
        "FalconConfig",
        _FALCON
        | {"multi_query": False, "new_decoder_architecture": False, "alibi": True, "parallel_attn": False},
    ),
    "falcon_new": (
        "FalconForCausalLM",
        "FalconConfig",
        _FALCON | {"num_kv_heads": 2, "new_decoder_architecture": True, "alibi": False},
    ),
    "bloom": (
        "BloomForCausalLM",
        "BloomConfig",
        _TOKENS | {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": HEADS},
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _LLAMA),
    "gptj": (
        "GPTJForCausalLM",
        "GPTJConfig",
        _TOKENS
        | {
            "vocab_size": VOCABULARY,
            "n_embd": HIDDEN,
            "n_layer": LAYERS,
            "n_head": HEADS,
            "n_positions": 128,
            "rotary_dim": 4,
        },
    ),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        _FALCON | {"ffn_dim": INNER, "max_position_embeddings": 128, "word_embed_proj_dim": HIDDEN},
    ),
    "mpt": (
        "MptForCausalLM",
        "MptConfig",
        _TOKENS
        | {
            "vocab_size": VOCABULARY,
            "d_model": HIDDEN,
            "n_layers": LAYERS,
            "n_heads": HEADS,
            "max_seq_len": 128,
            "expansion_ratio": 2,
        },
    ),
    "mamba": (
        "MambaForCausalLM",
        "MambaConfig",
        _TOKENS
        | {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "state_size": 8},
    ),
}
_ENCODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertForSequenceClassification", "BertConfig", _BERT),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", _BERT),
    "deberta_v2": (
        "DebertaV2ForSequenceClassification",
        "DebertaV2Config",
        _BERT
        | {
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 16,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
        },
    ),
    "distilbert": (
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {
            "vocab_size": VOCABULARY,
            "dim": HIDDEN,
            "n_layers": LAYERS,
            "n_heads": HEADS,
            "hidden_dim": INNER,
            "max_position_embeddings": 128,
            "pad_token_id": 0,
        },
    ),
    "electra": ("ElectraForSequenceClassification", "ElectraConfig", _BERT | {"embedding_size": 16}),
    "vit": (
        "ViTForImageClassification",
        "ViTConfig",
        {
            "hidden_size": HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "intermediate_size": INNER,
            "image_size": IMAGE,
            "patch_size": PATCH,
        },
    ),
}
_SEQ2SEQ: dict[str, tuple[str, str, dict[str, Any]]] = {
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "vocab_size": VOCABULARY,
            "d_model": HIDDEN,
            "d_kv": HIDDEN // HEADS,
            "d_ff": INNER,
            "num_layers": LAYERS,
            "num_heads": HEADS,
            "pad_token_id": 0,
            "eos_token_id": 2,
            "decoder_start_token_id": 0,
        },
    ),
    "bart": (
        "BartForConditionalGeneration",
        "BartConfig",
        _BART | {"max_position_embeddings": 128, "forced_eos_token_id": 2},
    ),
    "whisper": (
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        _BART | {"num_mel_bins": MELS, "max_source_positions": FRAMES // 2, "max_target_positions": 64},
    ),
}
_TRANSFORMERS = _CAUSAL | _ENCODERS | _SEQ2SEQ

CAUSAL = tuple(_CAUSAL)
"""Language models that predict the next token."""
SEQ2SEQ = tuple(_SEQ2SEQ)
"""Encoder-decoders."""
PLAIN = ("torch_encoder", "handmade")
"""Modules that transformers knows nothing of."""
ALL = (*_TRANSFORMERS, *PLAIN)


def build(name: str, attention: str | None = None) -> nn.Module:
    """Returns the model in eval mode on the CPU, in float32.

    Args:
        name: One of `ALL`.
        attention: Attention implementation of a transformers model: `"eager"`, `"sdpa"` or the default.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name == "torch_encoder":
            layer = nn.TransformerEncoderLayer(HIDDEN, HEADS, INNER, batch_first=True)
            return nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False).eval()
        if name == "handmade":
            return HandmadeModel().eval()
        model, config, settings = _TRANSFORMERS[name]
        choice = {} if attention is None else {"attn_implementation": attention}
        return getattr(transformers, model)(getattr(transformers, config)(**settings, **choice)).eval()


def inputs(name: str, batch: int = 2, length: int = 7) -> dict[str, Any]:
    """Returns arguments for forward: padded on the left of the first row where there is a mask."""
    generator = torch.Generator().manual_seed(batch * 100 + length)

    def tokens(count: int = length) -> Tensor:
        return torch.randint(3, VOCABULARY, (batch, count), generator=generator)

    if name == "vit":
        return {"pixel_values": torch.randn(batch, CHANNELS, IMAGE, IMAGE, generator=generator)}
    if name == "whisper":
        features = torch.randn(batch, MELS, FRAMES, generator=generator)
        return {"input_features": features, "decoder_input_ids": tokens()}
    if name == "torch_encoder":
        return {"src": torch.randn(batch, length, HIDDEN, generator=generator)}
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, :2] = 0
    arguments: dict[str, Any] = {"input_ids": tokens(), "attention_mask": mask}
    if name in SEQ2SEQ:
        arguments["decoder_input_ids"] = tokens(max(1, length - 2))
    return arguments


class HandmadeBlock(nn.Module):
    """A pre-norm block with everything inline: fused rows, eager attention, a scaled residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.fused = nn.Linear(HIDDEN, 3 * HIDDEN)
        self.out = nn.Linear(HIDDEN, HIDDEN)
        self.inner = nn.Sequential(nn.Linear(HIDDEN, INNER), nn.GELU(), nn.Linear(INNER, HIDDEN))

    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        batch, length, _ = x.shape
        parts = self.fused(self.norm(x)).chunk(3, -1)
        q, k, v = (part.reshape(batch, length, HEADS, -1).transpose(1, 2) for part in parts)
        scores = q @ k.transpose(-1, -2) / q.size(-1) ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :].bool(), torch.finfo(scores.dtype).min)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, -1)
        x = x + nn.functional.dropout(self.out(mixed), 0.1, self.training) * scale
        return x + self.inner(x)


class HandmadeModel(nn.Module):
    """A language model that no library knows."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, HIDDEN)
        self.blocks = nn.ModuleList(HandmadeBlock() for _ in range(LAYERS))
        self.scores = nn.Linear(HIDDEN, VOCABULARY)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.tokens(input_ids)
        for block in self.blocks:
            x = block(x, attention_mask)
        return self.scores(x)
