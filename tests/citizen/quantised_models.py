"""Small decoders whose weights are kept as codes, by each library and by hand."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

HIDDEN, VOCABULARY = 64, 99
Replace = Callable[[nn.Linear], nn.Module]
Build = Callable[[], nn.Module]


def plain(dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """Returns a decoder of two layers; 64 wide, as some kernels have codes for blocks of 64 inputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=128,
            pad_token_id=0,
        )
        return LlamaForCausalLM(config).eval().to(dtype)


def tokens() -> dict[str, Tensor]:
    ids = torch.randint(3, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def quantised(kind: str) -> nn.Module:
    """Returns the decoder quantised by one of `KINDS`, all but its head."""
    with warnings.catch_warnings():
        # What the libraries say of themselves while they are imported.
        warnings.simplefilter("ignore")
        return KINDS[kind]()


def _each_linear(model: nn.Module, replace: Replace) -> nn.Module:
    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear and path != "lm_head":
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, replace(module).eval())
    return model


def _torchao(make_config: Callable[[Any], Any], dtype: torch.dtype = torch.float32) -> Build:
    def build() -> nn.Module:
        from torchao import quantization

        model = plain(dtype)

        def is_inner(module: nn.Module, name: str) -> bool:
            return isinstance(module, nn.Linear) and name != "lm_head"

        quantization.quantize_(model, make_config(quantization), is_inner)
        return model

    return build


def _eight_bits() -> nn.Module:
    from bitsandbytes.nn import Linear8bitLt

    def replace(linear: nn.Linear) -> nn.Module:
        new = Linear8bitLt(linear.in_features, linear.out_features, bias=False, has_fp16_weights=False)
        new.load_state_dict(linear.state_dict())
        return new.to("cpu")

    return _each_linear(plain(), replace)


def _four_bits(dtype: torch.dtype = torch.float32) -> nn.Module:
    from bitsandbytes.nn import Linear4bit

    def replace(linear: nn.Linear) -> nn.Module:
        new = Linear4bit(
            linear.in_features, linear.out_features, bias=False, quant_type="nf4", compute_dtype=dtype
        )
        new.load_state_dict(linear.state_dict())
        return new.to("cpu")

    return _each_linear(plain(dtype), replace)


class PackedByHand(nn.Module):
    """A linear as GPTQ's checkpoints keep it: eight 4-bit codes of inputs in each int32, in buffers alone."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().t()  # (in, out)
        scales = weight.abs().amax(0, keepdim=True) / 7
        codes = (weight / scales).round().to(torch.int32) + 8
        shifts = 4 * torch.arange(8, dtype=torch.int32).view(1, 8, 1)
        self.register_buffer("qweight", (codes.unflatten(0, (-1, 8)) << shifts).sum(1, dtype=torch.int32))
        self.register_buffer("scales", scales)

    def forward(self, x: Tensor) -> Tensor:
        shifts = 4 * torch.arange(8, dtype=torch.int32).view(1, 8, 1)
        codes = (self.qweight.unsqueeze(1) >> shifts) & 15
        return x @ ((codes.flatten(0, 1) - 8) * self.scales)


KINDS: dict[str, Build] = {
    "torchao int8": _torchao(lambda ao: ao.Int8WeightOnlyConfig()),
    "torchao int8 of bfloat16": _torchao(lambda ao: ao.Int8WeightOnlyConfig(), torch.bfloat16),
    "torchao int4": _torchao(
        lambda ao: ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=ao.PerGroup(32))
    ),
    "bitsandbytes 8-bit": _eight_bits,
    "bitsandbytes nf4": _four_bits,
    "bitsandbytes nf4 of bfloat16": lambda: _four_bits(torch.bfloat16),
    "packed as GPTQ": lambda: _each_linear(plain(), PackedByHand),
}
