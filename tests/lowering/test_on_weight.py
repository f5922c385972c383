"""Insertions on a weight: in every kind of host, on some of its rows, and beside other insertions."""

import copy

import pytest
import torch
from torch import nn

import peft_compiler as pc
from tests import zoo

PATH = "transformer.h.0.attn.c_attn"


def stirred(tuned: nn.Module) -> nn.Module:
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=draws), alpha=0.1)
    return tuned


@pytest.mark.parametrize(
    "name",
    ["llama", "gpt2", "falcon_multi_query", "mixtral", "bert", "t5", "whisper", "vit", "torch_encoder"],
)
def test_every_promise_is_kept_on_every_linear(name: str) -> None:
    report = pc.verify(pc.compile(zoo.build(name), "DoRA r=2 on all linear", zoo.inputs(name)))
    assert report.ok, str(report)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_every_promise_is_kept_on_embeddings_and_heads(name: str) -> None:
    report = pc.verify(pc.compile(zoo.build(name), "DoRA r=2 on embedding,head", zoo.inputs(name)))
    assert report.ok, str(report)


@pytest.mark.parametrize(
    "spec",
    [
        "LoRA r=2 on q; DoRA r=2 on v",
        "LoRA r=2 on q,v; DoRA r=2 on v",
        "DoRA r=2 on q,v; LoRA r=2 on v,k; adapters width=2 after FFN",
    ],
)
def test_it_stands_with_others_on_one_host(spec: str) -> None:
    report = pc.verify(pc.compile(zoo.build("gpt2"), spec, zoo.inputs("gpt2")))
    assert report.ok, str(report)


def test_rows_of_no_insertion_are_the_base_s_bit_for_bit() -> None:
    model = zoo.build("gpt2")
    tuned = stirred(pc.compile(model, "LoRA r=2 on q; DoRA r=2 on v"))
    x = torch.randn(2, 5, zoo.HIDDEN)
    with torch.no_grad():
        q, k, v = (tuned.get_submodule(PATH)(x) - model.get_submodule(PATH)(x)).split(zoo.HIDDEN, -1)
    assert q.abs().min() > 0
    assert v.abs().min() > 0
    assert torch.count_nonzero(k) == 0


def test_a_weight_is_mapped_before_anything_stands_beside_it() -> None:
    model = zoo.build("gpt2")
    tuned = stirred(pc.compile(model, "LoRA r=2 on v; DoRA r=2 on v"))
    inserted = tuned.get_submodule(PATH).inserted
    assert list(inserted) == ["value_dora", "value_lora"]
    plain, x = copy.deepcopy(model.get_submodule(PATH)), torch.randn(2, 5, zoo.HIDDEN)
    with torch.no_grad():
        plain.weight.copy_(inserted["value_dora"](plain.weight))
        expected = plain(x)
        expected[..., 2 * zoo.HIDDEN :] += inserted["value_lora"](x)
        torch.testing.assert_close(tuned.get_submodule(PATH)(x), expected)


def test_the_graph_reads_as_the_sentence_does() -> None:
    tuned = pc.compile(zoo.build("llama"), "DoRA r=2 on q; LoRA r=2 on q", zoo.inputs("llama"))
    code = tuned.get_submodule("model.layers.0.self_attn.q_proj").code
    assert code.index("inserted.query_dora") < code.index("linear(") < code.index("inserted.query_lora")


@pytest.mark.parametrize(
    "method",
    [
        "LoRA r=2 init=pissa",
        "LoRA r=2 freeze_a=true bias=true",
        "VeRA r=8",
        "LoHa r=2",
        "LoKr r=2",
        "OFT block_size=4",
        "BOFT block_size=4 factors=2",
        "HRA r=4",
        "FourierFT n=20",
        "RandLoRA r=4",
        "MiSS r=8",
        "AdaLoRA r=3",
    ],
)
def test_every_method_keeps_every_promise_on_fused_rows(method: str) -> None:
    report = pc.verify(pc.compile(zoo.build("gpt2"), f"{method} on q,v", zoo.inputs("gpt2")))
    assert report.ok, str(report)
