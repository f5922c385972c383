"""What X-LoRA promises: its formula, its counts, where it stands, and which settings are refused."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import peft_compiler as pc
from peft_compiler.methods import XLoRA
from peft_compiler.methods._routing import giving
from peft_compiler.methods.x_lora import Mixture, Weighing
from peft_compiler.site import Projection, Role
from peft_compiler.testing.places import WIDTH, examples
from tests import zoo

EXAMPLE = examples()["linear"]
SITE = EXAMPLE.site
D, N = zoo.HIDDEN, 2
PLACES = 4
"""q and v in two layers, each of whose weights has D columns, and D or D / 2 rows."""


def mixture(method: XLoRA) -> Mixture:
    module = method.at(SITE).build(SITE, EXAMPLE.host, torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        module.loras.up.normal_(generator=torch.Generator().manual_seed(1))
    return module


def test_the_formula_is_the_papers() -> None:
    """Each LoRA's own product, weighed for each token by a softmax of what the place makes of the states."""
    module = mixture(XLoRA(adapters=("a", "b", "c"), r=2, alpha=6.0, depth=2, width=5, weight=0.5))
    x, states = torch.randn(2, 4, 8), torch.randn(2, 4, WIDTH)
    first, relu, *dropout = module.router.layers
    assert [type(each) for each in (first, relu, *dropout)] == [nn.Linear, nn.ReLU, nn.Dropout]
    scalings = module.score(first(states).relu()).softmax(-1)
    expected = sum(
        0.5 * scalings[..., i : i + 1] * 6.0 / 2 * x @ module.loras.down[i].T @ module.loras.up[i].T
        for i in range(3)
    )
    with giving({module.router: module.router(states)}):
        torch.testing.assert_close(module(x), expected)
        # The same where a forward has one axis for the positions of all sequences.
        torch.testing.assert_close(module(x.flatten(0, 1)), expected.flatten(0, 1))


def test_the_first_run_has_every_lora_at_the_same_number() -> None:
    module = mixture(XLoRA(r=2, scaling_pass=0.25))
    x = torch.randn(2, 4, 8)
    assert module.router.first == 0.25
    with giving({module.router: 0.25}):
        expected = 0.25 * sum(x @ module.loras.down[i].T @ module.loras.up[i].T for i in range(2))
        torch.testing.assert_close(module(x), expected)
    with giving({module.router: 0.0}):
        assert torch.equal(module(x), torch.zeros(2, 4, 6))


def test_scalings_are_weighed_as_the_settings_say() -> None:
    said = torch.tensor([1.0, 3.0, 2.0])
    assert torch.equal(Weighing("off", 1.0, None, 2.0)(said), 2 * said)
    assert torch.equal(Weighing("all", 0.5, None, 1.0)(said), (2 * said).softmax(-1))
    assert torch.equal(Weighing("off", 1.0, 2, 1.0)(said), torch.tensor([0.0, 3.0, 2.0]))
    kept = said.softmax(-1) * torch.tensor([0.0, 1.0, 1.0])
    assert torch.equal(Weighing("all", 1.0, 2, 1.0)(said), kept)
    among = torch.cat([torch.zeros(1), said[1:].softmax(-1)])
    assert torch.equal(Weighing("top_k", 1.0, 2, 1.0)(said), among)


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ("", PLACES * N * (D + 1)),
        ("adapters=[a, b, c]", PLACES * 3 * (D + 1)),
        ("layerwise=false", N * (D + 1)),
        ("depth=2 width=16", (D + 1) * 16 + PLACES * N * 17),
        ("depth=4 width=16", (D + 1) * 16 + 2 * 17 * 16 + PLACES * N * 17),
        ("depth=3 width=16 layerwise=false", (D + 1) * 16 + 17 * 16 + 17 * N),
        ("depth=2", (D + 1) * 2048 + PLACES * N * 2049),
        ("train_adapters=true", PLACES * N * (D + 1) + N * 8 * 2 * (D + D + D + D // 2)),
    ],
)
def test_the_count_is_that_of_the_router_and_of_what_else_is_trained(words: str, count: int) -> None:
    model = zoo.build("llama").to("meta")
    plan = pc.plan(model, f"x-lora {words} on q,v", zoo.inputs("llama"))
    assert plan.trainable == count
    tuned = pc.compile(model, f"x-lora {words} on q,v", zoo.inputs("llama"))
    assert sum(p.numel() for p in tuned.parameters() if p.requires_grad) == count


@pytest.mark.parametrize(
    "name", ["gpt2", "gemma3", "mixtral", "opt", "phi3", "bert", "vit", "whisper", "handmade"]
)
def test_every_promise_is_kept_by_every_kind_of_model(name: str) -> None:
    report = pc.verify(pc.compile(zoo.build(name), "x-lora r=2 on q,v,o", zoo.inputs(name)))
    assert report.ok, str(report)


def test_trained_loras_learn_and_from_the_second_step_on_the_router_too() -> None:
    tuned = pc.compile(zoo.build("llama"), "x-lora r=2 train_adapters=true on q", zoo.inputs("llama"))
    trained = {name: p for name, p in tuned.named_parameters() if p.requires_grad}
    optimiser = torch.optim.AdamW(trained.values(), lr=1e-2)
    reached: list[set[str]] = []
    for _ in range(2):
        optimiser.zero_grad()
        tuned(**zoo.inputs("llama")).logits.square().mean().backward()
        reached.append({name.rpartition("x_lora.")[2] for name, p in trained.items() if p.grad.any()})
        optimiser.step()
    assert reached == [{"loras.up"}, {"loras.up", "loras.down", "score.weight", "score.bias"}]


def test_each_tower_has_a_router_and_what_reads_the_other_one_is_left_out() -> None:
    plan = pc.plan(zoo.build("t5"), "x-lora on all linear", zoo.inputs("t5"))
    assert not any(insertion.site.cross for insertion in plan.insertions)
    assert {insertion.site.stack.path for insertion in plan.insertions} == {"encoder", "decoder"}
    with pytest.raises(pc.PlanError) as caught:
        pc.plan(zoo.build("t5"), "x-lora on k of cross attention", zoo.inputs("t5"))
    assert caught.value.problems == (
        "rule 1 (x_lora): the attention.key of a cross-attention sees the positions of another sequence "
        "than the one that is routed: leave it out\n"
        "  at 'decoder.block.0.layer.1.EncDecAttention.k' (attention.key) and 1 other place",
    )


@pytest.mark.parametrize(
    ("method", "problem"),
    [
        (XLoRA(r=7), "r=7 exceeds the rank of a 6 x 8 weight: take r <= 6"),
        (XLoRA(r=2, width=5), "width=5 is for what is between layers, and the router has one: take depth=2"),
        (
            XLoRA(r=2, dropout=0.1),
            "dropout=0.1 is for what is between layers, and the router has one: take depth=2",
        ),
        (
            XLoRA(r=2, softmax="off", temperature=2.0),
            "temperature=2.0 has no softmax to act on: take softmax=all",
        ),
        (
            XLoRA(adapters=("a", "b", "c"), r=2, softmax="top_k", top_k=1),
            "softmax=top_k needs two LoRAs or more to choose among: take top_k=2 or more",
        ),
        (XLoRA(r=2, top_k=2), "top_k=2 keeps all 2 LoRAs: take less, or leave it out"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_the_reason(method: XLoRA, problem: str) -> None:
    assert list(method.at(SITE).problems(SITE)) == [problem]


def test_places_that_cannot_be_routed_are_refused_with_the_reason() -> None:
    assert isinstance(SITE.place, Projection)
    said = (
        "it is not applied to each position of a stack of blocks, in their order, about which a router could "
        "decide: leave it out"
    )
    for site in (replace(SITE, stack=None), replace(SITE, place=replace(SITE.place, form="experts"))):
        assert said in list(XLoRA(r=2).at(site).problems(site))
    site = replace(SITE, role=Role.VALUE, cross=True)
    assert list(XLoRA(r=2).at(site).problems(site)) == [
        "the attention.value of a cross-attention sees the positions of another sequence than the one that "
        "is routed: leave it out"
    ]


def test_other_positions_than_the_routers_are_an_error_when_it_runs() -> None:
    module = mixture(XLoRA(r=2))
    states = torch.randn(2, 4, WIDTH)
    with giving({module.router: module.router(states)}), pytest.raises(pc.LoweringError) as caught:
        module(torch.randn(4, 2, 8))
    assert str(caught.value) == (
        "a mixture of LoRAs is applied to (4, 2, 8), its router read states of the shape (2, 4, 7); "
        "expected the same positions: leave this place out"
    )


def test_two_loras_of_one_name_are_refused() -> None:
    with pytest.raises(pc.SpecError, match="found one name twice; call each adapter something else"):
        pc.plan(zoo.build("llama"), "x-lora adapters=[a, a]")
