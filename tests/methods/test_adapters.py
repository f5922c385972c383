"""Where each kind of adapter stands, what it computes there and refuses, and which layers have one."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

import peft_compiler as pc
from peft_compiler.methods import (
    Adapter,
    AdapterFusion,
    GatedAdapter,
    GatedLoRA,
    Method,
    ParallelAdapter,
    PfeifferAdapter,
)
from peft_compiler.site import Edge, Role
from peft_compiler.testing.places import ANCHOR, examples
from tests import zoo
from tests.test_compiling import stir

EXAMPLES = examples()


def stirred(name: str, spec: str) -> nn.Module:
    tuned = pc.compile(zoo.build(name), spec, zoo.inputs(name))
    stir(tuned)
    return tuned


def branch(inserted: nn.Module, x: Tensor) -> Tensor:
    """The formula of every adapter, written out once more."""
    narrow = inserted.activation(x @ inserted.down.weight.T + inserted.down.bias)
    return narrow @ inserted.up.weight.T + inserted.up.bias


def in_a_post_norm_block(spec: str, name: str) -> tuple[Tensor, nn.Module, Tensor, Tensor, Tensor]:
    """The output of a block's last part with an adapter, the adapter, x, y and the base's output."""
    tuned = stirred("bert", spec)
    path = "bert.encoder.layer.1.output"
    ours, base = tuned.get_submodule(path), zoo.build("bert").get_submodule(path)
    wide, x = torch.randn(2, 5, zoo.INNER), torch.randn(2, 5, zoo.HIDDEN)
    with torch.no_grad():
        return ours(wide, x), ours.get_submodule(f"inserted.{name}"), x, base.dense(wide), base.LayerNorm


def test_a_parallel_adapter_reads_the_stream_that_its_sub_layer_leaves() -> None:
    given, inserted, x, y, norm = in_a_post_norm_block(
        "parallel adapters width=4 scale=3 after FFN", "feed_forward_parallel_adapter"
    )
    torch.testing.assert_close(given, norm(x + y + 3 * branch(inserted, x)))


def test_a_parallel_adapter_reads_the_stream_before_the_norm_of_its_sub_layer() -> None:
    tuned, base = stirred("llama", "parallel adapters width=4 after FFN"), zoo.build("llama")
    layer, plain = (model.get_submodule("model.layers.1") for model in (tuned, base))
    streams: list[Tensor] = []
    layer.post_attention_layernorm.register_forward_pre_hook(lambda *call: streams.append(call[1][0]))
    inside: list[Tensor] = []
    layer.register_forward_hook(lambda *call: inside.append(call[2]))
    with torch.no_grad():
        tuned(**zoo.inputs("llama"))
        (x,), (out,) = streams, inside
        inserted = layer.get_submodule("inserted.feed_forward_parallel_adapter")
        fed = plain.mlp(plain.post_attention_layernorm(x))
        torch.testing.assert_close(out, x + fed + branch(inserted, x))


def test_a_learned_scale_starts_at_one_and_learns() -> None:
    tuned = pc.compile(zoo.build("gpt2"), "parallel adapters width=4 scale=learned after FFN")
    scale = tuned.get_parameter("transformer.h.0.inserted.feed_forward_parallel_adapter.scale")
    assert scale.item() == 1.0
    stir(tuned)
    tuned(**zoo.inputs("gpt2")).logits.square().mean().backward()
    assert scale.grad is not None
    assert scale.grad.abs() > 0


def test_a_pfeiffer_adapter_reads_the_normalised_sum_and_joins_it_before_it_is_normalised() -> None:
    given, inserted, x, y, norm = in_a_post_norm_block(
        "pfeiffer adapters width=4", "feed_forward_pfeiffer_adapter"
    )
    torch.testing.assert_close(given, norm(x + y + branch(inserted, norm(x + y))))


def test_a_pfeiffer_adapter_reads_the_sum_where_no_norm_is_behind_it() -> None:
    tuned, base = stirred("handmade", "pfeiffer adapters width=4"), zoo.build("handmade")
    (block, plain), x = (model.get_submodule("blocks.0") for model in (tuned, base)), torch.randn(2, 5, 32)
    inserted = block.get_submodule("inserted.feed_forward_pfeiffer_adapter")
    with torch.no_grad():
        torch.testing.assert_close(block(x), plain(x) + branch(inserted, plain(x)))


@pytest.mark.parametrize("name", ["handmade", "gpt2", "torch_encoder"])
def test_an_adapter_on_a_block_takes_what_the_block_returns_first(name: str) -> None:
    tuned = stirred(name, "adapters width=4 on block; adapters width=3 after FFN")
    paths = [i.site.path for i in tuned.compilation.plan.insertions if i.site.role == "block"]
    assert len(paths) == zoo.LAYERS
    block, x = tuned.get_submodule(paths[0]), torch.randn(2, 5, zoo.HIDDEN)
    alone = stirred(name, "adapters width=3 after FFN").get_submodule(paths[0])
    alone.inserted.load_state_dict(block.inserted.state_dict(), strict=False)
    inserted = block.get_submodule("inserted.block_adapter")
    with torch.no_grad():
        ours, theirs = block(x), alone(x)
    assert type(ours) is type(theirs)
    first, plain = (out[0] if isinstance(out, tuple) else out for out in (ours, theirs))
    torch.testing.assert_close(first, plain + branch(inserted, plain))


def test_a_gate_reads_what_its_adapter_or_update_is_given() -> None:
    edge, linear = EXAMPLES["feed-forward edge"], EXAMPLES["linear"]
    draws = torch.Generator().manual_seed(0)
    adapter = GatedAdapter(width=3).build(edge.site, edge.host, draws)
    nn.init.normal_(adapter.up.weight)
    gate = torch.sigmoid(edge.x @ adapter.gate.weight.T + adapter.gate.bias)
    torch.testing.assert_close(adapter(edge.x), gate * branch(adapter, edge.x))
    lora = GatedLoRA(r=2, alpha=6).build(linear.site, linear.host, draws)
    nn.init.normal_(lora.update.up)
    gate = torch.sigmoid(linear.x @ lora.gate.weight.T + lora.gate.bias)
    expected = gate * 3 * (linear.x @ lora.update.down.T @ lora.update.up.T)
    torch.testing.assert_close(lora(linear.x), expected)


def test_a_gate_without_one_vector_a_position_is_refused() -> None:
    site = replace(EXAMPLES["conv1d"].site, role=Role.UP)
    assert list(GatedLoRA(r=2).problems(site)) == [
        "the gate reads one vector a position, which a conv is not given: take LoRA"
    ]


def test_adapters_of_low_rank_have_weights_of_that_rank() -> None:
    example = EXAMPLES["feed-forward edge"]
    module = Adapter(width=6, rank=2, init="near_zero").build(example.site, example.host, torch.Generator())
    for part in (module.down, module.up):
        assert torch.linalg.matrix_rank(part.right @ part.left) == 2
    x = torch.randn(3, 8)
    narrow = torch.nn.functional.gelu(x @ (module.down.right @ module.down.left).T + module.down.bias)
    expected = x + narrow @ (module.up.right @ module.up.left).T + module.up.bias
    torch.testing.assert_close(module(x), expected)


def test_an_adapter_near_zero_is_near_the_identity_and_normalises_where_told_to() -> None:
    example = EXAMPLES["feed-forward edge"]
    method = Adapter(width=6, init="near_zero", layer_norm=True)
    module = method.build(example.site, example.host, torch.Generator().manual_seed(0))
    assert 0 < (module(example.x) - example.x).abs().max() < 1e-2
    nn.init.normal_(module.up.weight)
    normed = nn.functional.layer_norm(example.x, (8,))
    torch.testing.assert_close(module(example.x), example.x + branch(module, normed))


def test_dropping_the_adapters_of_lower_layers_is_a_selection() -> None:
    # AdapterDrop, arXiv:2010.11918, section 3: no adapters in the first n layers.
    plan = pc.plan(zoo.build("bert"), "adapters width=4 after attention, FFN of layers 1", zoo.inputs("bert"))
    assert {(i.site.layer, i.site.role.value) for i in plan.insertions} == {
        (1, "attention"),
        (1, "feed_forward"),
    }


@pytest.mark.parametrize("method", [Adapter(width=8), ParallelAdapter(width=8), PfeifferAdapter(width=8)])
def test_what_is_no_bottleneck_is_refused(method: Method) -> None:
    assert list(method.problems(EXAMPLES["feed-forward edge"].site)) == [
        "width=8 is no bottleneck: the place is 8 wide; take less"
    ]


def test_a_fusion_calls_each_adapter_something_else() -> None:
    with pytest.raises(ValidationError, match="found one name twice; call each adapter something else"):
        AdapterFusion(adapters=("news", "reviews", "news"))


def test_a_rank_that_restricts_nothing_is_refused() -> None:
    assert list(Adapter(width=4, rank=4).problems(EXAMPLES["feed-forward edge"].site)) == [
        "rank=4 is no restriction: the narrow layer has 4 units; take less"
    ]


def test_a_parallel_adapter_without_its_source_is_refused() -> None:
    site = replace(EXAMPLES["feed-forward edge"].site, place=Edge(ANCHOR, 1), module_type="Output")
    assert list(ParallelAdapter(width=2).problems(site)) == [
        "the stream that the sub-layer leaves does not reach the Output that adds its output: "
        "take an adapter after it"
    ]
