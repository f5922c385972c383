"""What UniPELT promises: gates of a whole sequence, each example's own, on every kind of attention."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peft_compiler as pc
from peft_compiler.errors import PlanError
from peft_compiler.methods import GatedAdapter, GatedLoRA, GatedPrefix
from peft_compiler.site import Core
from peft_compiler.testing.places import examples
from tests import zoo
from tests.test_compiling import WITH_ATTENTION, main_output, stir

EXAMPLES = examples()
IMPLEMENTATIONS = ("sdpa", "eager")
# The recipe, but for a width: here 1/16 are two units, which a ReLU may both shut.
WIDER = "gated lora gate=sequence on q,v; gated prefix; gated adapter width=16 gate=sequence"
FLATTENED = (
    "a gate for each sequence averages over the positions of an example, which are not told apart here: "
    "examples and positions are flattened into one axis, or the example inputs have as many of one as of "
    "the other; take {}, or other example inputs"
)


def built(name: str, attention: str) -> nn.Module:
    if attention == "eager" and name in ("handmade", "mpt", "torch_encoder"):
        pytest.skip("has one implementation only")
    return zoo.build(name, attention if attention == "eager" else None)


def unpadded(name: str, **size: int) -> dict[str, Tensor]:
    given = zoo.inputs(name, **size)
    return {key: value for key, value in given.items() if key != "attention_mask"}


def outputs(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return main_output(model(**inputs))


def test_a_gate_of_a_sequence_is_the_mean_of_those_of_its_positions() -> None:
    edge, linear = EXAMPLES["feed-forward edge"], EXAMPLES["linear"]
    adapter = GatedAdapter(width=3, gate="sequence").build(edge.site, edge.host, torch.Generator())
    lora = GatedLoRA(r=2, alpha=6, gate="sequence").build(linear.site, linear.host, torch.Generator())
    nn.init.normal_(adapter.up.weight)
    nn.init.normal_(lora.update.up)
    for module, x in ((adapter, edge.x), (lora, linear.x)):
        nn.init.normal_(module.gate.weight)
        gates = torch.sigmoid(x @ module.gate.weight[0] + module.gate.bias).mean(1)[:, None, None]
        if module is adapter:
            branch = module.up(torch.relu(module.down(x)))
            torch.testing.assert_close(module(x), gates * branch)
        else:
            torch.testing.assert_close(module(x), gates * 3 * (x @ module.update.down.T @ module.update.up.T))


@pytest.mark.parametrize("attention", IMPLEMENTATIONS)
def test_the_formula_is_the_papers(attention: str) -> None:
    """Keys and values of the prefix times the mean of sigmoid(gate(x)), in front of the attention's own."""
    base = zoo.build("bert", attention)
    tuned = pc.compile(base, "gated prefix length=3 reparametrised=false of layers 0")
    stir(tuned)
    plain, ours = (model.bert.encoder.layer[0].attention.self for model in (base, tuned))
    inserted = ours.inserted.core_gated_prefix
    x = torch.randn(2, 5, zoo.HIDDEN, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        gates = torch.sigmoid(x @ inserted.gate.weight[0] + inserted.gate.bias).mean(1).view(2, 1, 1, 1)
        query, key, value = (
            projection(x).view(2, 5, 4, 8).transpose(1, 2)
            for projection in (plain.query, plain.key, plain.value)
        )
        key, value = (
            torch.cat([gates * prompts, own], 2)
            for prompts, own in ((inserted.prefix.keys, key), (inserted.prefix.values, value))
        )
        mixed = (query @ key.transpose(-1, -2) / math.sqrt(8)).softmax(-1) @ value
        torch.testing.assert_close(ours(x)[0], mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("attention", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_a_gate_that_reads_nothing_scales_a_prefix(name: str, attention: str) -> None:
    """On every attention there is, a constant gate gives what prompts give that are so much smaller."""
    base, given = built(name, attention), zoo.inputs(name)
    gated = pc.compile(base, "gated prefix length=3 reparametrised=false", given)
    plain = pc.compile(base, "prefix length=3 reparametrised=false", given)
    stir(gated)
    with torch.no_grad():
        state = dict(gated.named_parameters())
        for path, parameter in state.items():
            if path.endswith("gate.weight"):
                parameter.zero_()
        for path, parameter in plain.named_parameters():
            if parameter.requires_grad:
                stem, _, part = path.replace("core_prefix", "core_gated_prefix").rpartition(".")
                factor = state[f"{stem}.gate.bias"].sigmoid()
                parameter.copy_(state[f"{stem}.prefix.{part}"] * factor)
    torch.testing.assert_close(outputs(gated, given), outputs(plain, given), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["gpt2", "llama", "falcon_multi_query", "bert", "deberta_v2", "vit", "t5", "bart", "handmade"]
)
def test_the_recipe_keeps_every_promise(name: str) -> None:
    report = pc.verify(pc.compile(zoo.build(name), WIDER, zoo.inputs(name)))
    assert report.ok, str(report)
    assert "not promised by the settings of gated_adapter, gated_lora, gated_prefix" in str(report)


@pytest.mark.parametrize("attention", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", [name for name in WITH_ATTENTION if name not in ("opt", "torch_encoder")])
def test_no_example_reads_another(name: str, attention: str) -> None:
    tuned = pc.compile(built(name, attention), "unipelt", zoo.inputs(name))
    stir(tuned)
    given = unpadded(name, batch=3, length=9)
    alone = [outputs(tuned, {key: value[row : row + 1] for key, value in given.items()}) for row in range(3)]
    torch.testing.assert_close(outputs(tuned, given), torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_the_examples_of_torchs_own_attention_are_its_second_axis() -> None:
    base = zoo.build("torch_encoder")
    tuned = pc.compile(base, "gated lora r=2 gate=sequence on q,v; gated prefix length=3")
    stir(tuned)
    given = unpadded("torch_encoder", batch=3, length=9)
    alone = torch.cat([outputs(tuned, {"src": row[None]}) for row in given["src"]])
    torch.testing.assert_close(outputs(tuned, given), alone, atol=1e-5, rtol=1e-5)
    assert pc.verify(tuned).ok


def test_prompts_of_every_kind_stand_at_one_attention() -> None:
    sentences = ["deep prompts length=2", "gated prefix length=3", "llama-adapter length=2"]
    for name in ("llama", "gptj", "t5"):
        for order in (sentences, sentences[::-1]):
            both = []
            for attention in IMPLEMENTATIONS:
                tuned = pc.compile(built(name, attention), "; ".join(order), zoo.inputs(name))
                stir(tuned)
                # Without padding: gates read it, and what stands there depends on the implementation.
                both.append(outputs(tuned, unpadded(name, batch=3, length=9)))
            torch.testing.assert_close(*both, atol=1e-5, rtol=1e-5)


def test_the_mlp_is_dropped_and_the_gates_are_kept(tmp_path: Path) -> None:
    base = zoo.build("bart")
    tuned = pc.compile(base, "unipelt")
    stir(tuned)
    pc.save(tuned, tmp_path / "adapter")
    loaded = pc.load(base, tmp_path / "adapter")
    names = {name for name, p in loaded.named_parameters() if p.requires_grad and "core_gated" in name}
    assert {name.partition("core_gated_prefix.")[2] for name in names} == {
        "prefix.keys", "prefix.values", "gate.weight", "gate.bias",
    }  # fmt: skip
    assert torch.equal(outputs(loaded, zoo.inputs("bart")), outputs(tuned, zoo.inputs("bart")))


def test_once_the_mlp_is_dropped_the_count_is_that_of_the_matrices() -> None:
    # 10 positions of 2 · 32 numbers and a gate that reads 32, in each layer.
    assert pc.plan(zoo.build("bert"), "gated prefix").settled.trainable == zoo.LAYERS * (10 * 2 * 32 + 33)


def test_flattened_examples_are_refused_or_gated_by_position() -> None:
    with pytest.raises(PlanError) as caught:
        pc.plan(zoo.build("opt"), "gated adapters gate=sequence after FFN")
    assert FLATTENED.format("gate=position") in str(caught.value)
    pc.plan(zoo.build("opt"), "gated adapters after FFN")


def test_as_many_examples_as_positions_are_refused() -> None:
    given = zoo.inputs("bert", batch=5, length=5)
    with pytest.raises(PlanError) as caught:
        pc.plan(zoo.build("bert"), "gated prefix", given)
    assert FLATTENED.format("prefix") in str(caught.value)


def test_an_attention_whose_input_is_elsewhere_is_refused() -> None:
    site = EXAMPLES["core"].site
    assert isinstance(site.place, Core)
    hidden = replace(site, place=replace(site.place, source=None, source_width=0))
    assert list(GatedPrefix().problems(hidden)) == [
        "what its attention is applied to cannot be had where keys are added: take prefix instead"
    ]
