"""What of the adapters library is changed for a comparison, to prove that it is all that differs.

Each takes an adapted model, and changes it in place.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from adapters.methods.lora import LoRALinear
from torch import Tensor, nn
from torch.nn import functional


def leave_position_biases_where_they_are(model: nn.Module) -> None:
    """Gives prefixes no position bias, and tokens the one that they have without a prefix."""
    for module in model.modules():
        if getattr(module, "has_relative_attention_bias", False):
            module.compute_bias = unshifted(module.compute_bias, module.prefix_tuning)


def unshifted(compute_bias: Callable[..., Tensor], layer: Any) -> Callable[..., Tensor]:
    """Returns what computes the bias of the tokens alone, with zeros in front for the prefix."""

    def computed(query_length: int, key_length: int, **settings: Any) -> Tensor:
        groups = layer.pool.prefix_tunings.values()
        (length,) = {prefix.config.prefix_length for group in groups for prefix in group.values()}
        bias = compute_bias(query_length, key_length - length, **settings)
        return torch.cat([bias.new_zeros(*bias.shape[:-1], length), bias], -1)

    return computed


def follow_the_paper_of_dora(model: nn.Module) -> None:
    """Makes m (W + scale · BA) x / ||W + scale · BA|| + b of it, with the norm as a constant."""
    for layer in model.modules():
        if isinstance(layer, LoRALinear) and layer.loras:
            layer.forward = weight_decomposed(layer, layer.loras["oracle"])


def weight_decomposed(layer: Any, lora: Any) -> Callable[[Tensor], Tensor]:
    """Returns the forward of one such linear."""

    def computed(x: Tensor) -> Tensor:
        direction = layer.weight + lora.scaling * lora.lora_B @ lora.lora_A
        norm = torch.linalg.norm(direction.detach(), dim=1, keepdim=True)
        return functional.linear(x, lora.m.weight / norm * direction, layer.bias)

    return computed


def scale_behind_the_activation(model: nn.Module) -> None:
    """Moves IA3's factors of inner activations from what enters the nonlinearity to what leaves it."""
    layers = [m for m in model.modules() if isinstance(m, LoRALinear) and m.attn_key is None]
    for inner, outer in pairwise(layers):
        if inner.loras:
            factor = inner.loras["oracle"].lora_B.flatten()
            weight = inner.weight.T if inner.fan_in_fan_out else inner.weight
            inner.forward = lambda x, w=weight, b=inner.bias: functional.linear(x, w, b)
            outer.register_forward_pre_hook(lambda _, given, f=factor: (given[0] * f, *given[1:]))


def embed_the_prompt_with_the_words(model: nn.Module) -> None:
    """Puts the prompt in front of the word embeddings, where all get their positions and norm."""
    base = model.base_model
    embeddings, layer, words = base.embeddings, base.prompt_tuning, []
    embeddings.word_embeddings.register_forward_hook(lambda *given: words.append(given[-1]))
    as_it_was = layer.forward

    def embedded(states: Tensor) -> Tensor:
        as_it_was(states)  # tells the attention how long the prompt is
        prompted, length = layer.prompt_tunings["oracle"](words[-1])
        positions = embeddings.position_embeddings.weight[: length + states.shape[1]]
        return embeddings.LayerNorm(prompted + positions + embeddings.token_type_embeddings.weight[0])

    layer.forward = embedded


def couple_the_words(model: nn.Module) -> None:
    """Moves the invertible adapter to what the table of words gives."""
    base = model.base_model
    (coupling,) = base.invertible_adapters.values()
    base.invertible_adapters_forward = lambda states, rev=False: states
    base.get_input_embeddings().register_forward_hook(lambda *given: coupling(given[-1]))


def invert_before_the_head(model: nn.Module) -> None:
    """Puts the inverse of the invertible adapter before the head of transformers."""
    (coupling,) = model.base_model.invertible_adapters.values()
    model.get_output_embeddings().register_forward_pre_hook(lambda _, given: (coupling(given[0], rev=True),))


CHANGES: dict[str, Callable[[nn.Module], None]] = {
    "position biases stay where they are": leave_position_biases_where_they_are,
    "DoRA is its paper's": follow_the_paper_of_dora,
    "IA3 scales behind the activation": scale_behind_the_activation,
    "the prompt is embedded with the words": embed_the_prompt_with_the_words,
    "the coupling is on the word embeddings": couple_the_words,
    "the inverse stands before the head": invert_before_the_head,
}
