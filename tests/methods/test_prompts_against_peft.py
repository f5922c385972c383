"""Prompts, prefixes and P-tuning give what peft gives from the same values.

Where peft differs on purpose, the comparison steps around it: peft moves the tokens' positions
by the length of a prefix, so the base has no positions here, and it returns the prompts' logits.
"""

from collections.abc import Callable, Mapping
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

import peft_compiler as pc
from tests import zoo
from tests.methods.peft_oracle import by_peft

LENGTH = 3


def stirred(module: nn.Module) -> None:
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws) * 0.3)


def assert_equal(
    ours: nn.Module,
    theirs: nn.Module,
    pairs: Mapping[Tensor, Callable[[], Tensor | None]],
    inputs: dict[str, Any],
    lost: int,
) -> None:
    """Asserts equal logits, without the first `lost` of peft's, and equal gradients."""
    logits = [ours(**inputs).logits, theirs(**inputs).logits[:, lost:]]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)
    for output in logits:
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    for mine, other in pairs.items():
        torch.testing.assert_close(mine.grad, other(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "task", "lost"),
    [("gpt2", "CAUSAL_LM", LENGTH), ("llama", "CAUSAL_LM", LENGTH), ("t5", "SEQ_2_SEQ_LM", 0)],
)
def test_a_prompt(name: str, task: str, lost: int) -> None:
    base = zoo.build(name)
    settings = {"num_transformer_submodules": 1} if task == "SEQ_2_SEQ_LM" else {}
    theirs = by_peft(base, peft.PromptTuningConfig(task_type=task, num_virtual_tokens=LENGTH, **settings))
    ours = pc.compile(base, f"prompt length={LENGTH}", zoo.inputs(name))
    (mine,) = [parameter for parameter in ours.parameters() if parameter.requires_grad]
    table = theirs.prompt_encoder["default"].embedding.weight
    stirred(theirs.prompt_encoder)
    with torch.no_grad():
        mine.copy_(table)
    assert_equal(ours, theirs, {mine: lambda: table.grad}, zoo.inputs(name), lost)


@pytest.mark.parametrize("encoder", ["lstm", "mlp"])
def test_p_tuning(encoder: str) -> None:
    base = zoo.build("gpt2")
    config = peft.PromptEncoderConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=LENGTH,
        encoder_reparameterization_type=encoder.upper(),
        encoder_hidden_size=8,
        encoder_dropout=0.0,
        encoder_num_layers=2,
    )
    theirs = by_peft(base, config)
    ours = pc.compile(base, f"p-tuning length={LENGTH} encoder={encoder} width=8")
    mine = ours.get_submodule("transformer.inserted.input_p_tuning")
    other = theirs.prompt_encoder["default"]
    stirred(other)
    names = {"embeddings": "embedding.weight"} | {
        name: name.replace("lstm.", "lstm_head.").replace("mlp.", "mlp_head.") for name in mine.state_dict()
        if name != "embeddings"
    }  # fmt: skip
    with torch.no_grad():
        for name, same in names.items():
            mine.get_parameter(name).copy_(other.get_parameter(same))
    pairs = {
        mine.get_parameter(name): lambda same=same: other.get_parameter(same).grad
        for name, same in names.items()
    }
    assert_equal(ours, theirs, pairs, zoo.inputs("gpt2"), LENGTH)


@pytest.fixture
def without_positions() -> nn.Module:
    base = zoo.build("gpt2")
    with torch.no_grad():
        base.get_submodule("transformer.wpe").weight.zero_()
    return base


def prefixes(ours: nn.Module) -> list[Any]:
    return [
        ours.get_submodule(f"transformer.h.{layer}.attn.inserted.core_prefix") for layer in range(zoo.LAYERS)
    ]


def test_a_prefix(without_positions: nn.Module) -> None:
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=LENGTH)
    theirs = by_peft(without_positions, config)
    ours = pc.compile(without_positions, f"prefix tuning length={LENGTH} reparametrised=false")
    table = theirs.prompt_encoder["default"].embedding.weight
    stirred(theirs.prompt_encoder)

    def of(values: Tensor, layer: int, part: int) -> Tensor:
        """Returns the keys or values of a layer from peft's (length, layers · 2 · d)."""
        parts = values.view(LENGTH, zoo.LAYERS, 2, zoo.HEADS, -1)
        return parts[:, layer, part].transpose(0, 1)

    pairs: dict[Tensor, Callable[[], Tensor | None]] = {}
    for layer, mine in enumerate(prefixes(ours)):
        for part, parameter in enumerate((mine.keys, mine.values)):
            with torch.no_grad():
                parameter.copy_(of(table, layer, part))
            pairs[parameter] = lambda layer=layer, part=part: of(table.grad, layer, part)
    assert_equal(ours, theirs, pairs, zoo.inputs("gpt2"), 0)


def test_a_prefix_through_its_mlp(without_positions: nn.Module) -> None:
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=LENGTH, prefix_projection=True, encoder_hidden_size=8
    )
    theirs = by_peft(without_positions, config)
    ours = pc.compile(without_positions, f"prefix tuning length={LENGTH} width=8")
    other = theirs.prompt_encoder["default"]
    stirred(other)
    down, _, up = other.transform

    def rows(values: Tensor, layer: int) -> Tensor:
        """Returns a layer's rows, head by head, from peft's, which have all keys first."""
        parts = values.view(zoo.LAYERS, 2, zoo.HEADS, -1, *values.shape[1:])
        return parts[layer].transpose(0, 1).flatten(0, 2)

    trunk = prefixes(ours)[0].trunk
    pairs: dict[Tensor, Callable[[], Tensor | None]] = {
        trunk.embeddings: lambda: other.embedding.weight.grad,
        trunk.down.weight: lambda: down.weight.grad,
    }
    with torch.no_grad():
        trunk.embeddings.copy_(other.embedding.weight)
        trunk.down.weight.copy_(down.weight)
        trunk.down.bias.copy_(down.bias)
        for layer, mine in enumerate(prefixes(ours)):
            mine.up.weight.copy_(rows(up.weight, layer))
            mine.up.bias.copy_(rows(up.bias, layer))
            pairs[mine.up.weight] = lambda layer=layer: rows(up.weight.grad, layer)
    assert_equal(ours, theirs, pairs, zoo.inputs("gpt2"), 0)
