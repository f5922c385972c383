"""What LLaMA-Adapter promises: its formula, gates that start shut, every kind of attention."""

import math
from dataclasses import replace

import pytest
import torch
import transformers
from torch import nn

import peft_compiler as pc
from peft_compiler.methods import LLaMAAdapter
from peft_compiler.site import Core
from peft_compiler.testing.places import examples
from tests import zoo
from tests.test_compiling import CACHED, by_cache, stir

EXAMPLE = examples()["core"]
WITH_ATTENTION = [name for name in zoo.ALL if name not in ("mamba", "torch_encoder")]


def test_the_formula_is_the_papers() -> None:
    """A softmax over keys, one over prompts through the frozen projections, and a gate for each head."""
    model = zoo.build("llama")
    tuned = pc.compile(model, "llama-adapter length=3 of layers 0")
    stir(tuned)
    attention = model.model.layers[0].self_attn
    inserted = tuned.model.layers[0].self_attn.inserted.core_llama_adapter
    states, found = [], []
    attention.register_forward_pre_hook(lambda *args: states.append(args[2]), with_kwargs=True)
    attention.o_proj.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    tuned.model.layers[0].self_attn.o_proj.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    ids = zoo.inputs("llama")["input_ids"]
    with torch.no_grad():
        model(ids)
        tuned(ids)
        keys, values = (
            projection(inserted.prompts).view(3, 2, 8).repeat_interleave(2, 1).transpose(0, 1)
            for projection in (attention.k_proj, attention.v_proj)
        )
        x = states[0]["hidden_states"]
        query = attention.q_proj(x).view(*x.shape[:2], 4, 8).transpose(1, 2)
        cosine, sine = states[0]["position_embeddings"]
        query, _ = transformers.models.llama.modeling_llama.apply_rotary_pos_emb(query, query, cosine, sine)
        shares = (query @ keys.transpose(-1, -2) / math.sqrt(8)).softmax(-1)
        gated = (shares @ values) * inserted.gates.tanh()[:, None, None]
    torch.testing.assert_close(found[1], found[0] + gated.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_every_attention_starts_as_it_was_and_keeps_every_promise(name: str, attention: str) -> None:
    if attention == "eager" and name in ("handmade", "mpt"):
        pytest.skip("has one implementation only")
    tuned = pc.compile(
        zoo.build(name, attention if attention == "eager" else None),
        "llama-adapter length=3",
        zoo.inputs(name),
    )
    report = pc.verify(tuned)
    assert report.ok, str(report)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CACHED)
def test_incremental_logits_equal_full_logits_with_deep_prompts_too(name: str, attention: str) -> None:
    if attention == "eager" and name == "mpt":
        pytest.skip("has one implementation only")
    for sentence in (
        "llama-adapter length=3; deep prompts length=2; prefix tuning length=2 width=4 in self attention",
        "deep prompts length=2; prefix tuning length=2 width=4 in self attention; llama-adapter length=3",
    ):
        tuned = pc.compile(zoo.build(name, attention if attention == "eager" else None), sentence)
        draws = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for _, parameter in sorted(tuned.named_parameters()):
                if parameter.requires_grad:
                    parameter.copy_(torch.randn(parameter.shape, generator=draws) * 0.2)
            full, last = by_cache(tuned, name, zoo.inputs(name))
        torch.testing.assert_close(last, full, atol=1e-5, rtol=1e-5)


def test_the_count_is_the_papers() -> None:
    """1.2M on LLaMA-7B: K · C and a gate for each of 32 heads, in 30 layers."""
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig())
    plan = pc.plan(model, "llama-adapter length=10 of the last 30 layers")
    assert plan.trainable == 30 * (10 * 4096 + 32) == 1_229_760


def test_an_attention_without_projections_of_its_own_is_refused() -> None:
    assert isinstance(EXAMPLE.site.place, Core)
    site = replace(EXAMPLE.site, place=replace(EXAMPLE.site.place, keys=None))
    assert list(LLaMAAdapter().problems(site)) == [
        "its keys and values are not each given by one projection: take deep prompts instead"
    ]


def test_gates_have_a_gradient_from_the_first_step_on() -> None:
    tuned: nn.Module = pc.compile(zoo.build("llama"), "llama-adapter")
    tuned(**zoo.inputs("llama")).logits.square().mean().backward()
    gates = [p for name, p in tuned.named_parameters() if name.endswith("gates")]
    assert all(gate.grad is not None and bool((gate.grad != 0).all()) for gate in gates)
