"""Many methods in one model, and several at one place: what the plan's order makes of them, by formula."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peft_compiler as pc
from peft_compiler.plan import is_inserted
from tests import zoo
from tests.test_compiling import main_output, stir

MODELS = ["gpt2", "bert", "t5", "falcon_new", "handmade"]
TOKENS = (5, 9)
ALL_AT_ONCE = """
    lora r=4 on q,v; dora r=2 on q,up; vera r=8 on v; oft block_size=4 on v,up; ia3;
    bitfit add=true on q,k,v,o,up,down; ssf on q,o,down,norm;
    adapters; parallel adapters width=8; compacter adapters width=8;
    gated adapters width=8 after attention; loreft r=2;
    prefix length=3 width=16; deep prompts length=2; prompt length=2; p-tuning length=2;
    trainable tokens tokens=[5, 9]; train head"""
KINDS = 18
FOLDING = """
    lora r=4 on q,v; dora r=2 on q,v,up; vera r=8 on v,up; oft block_size=4 on v,up,down; ia3 on k,v,down;
    loha r=2 on up,down; fourierft n=8 on q; hra r=2 on down; lokr r=2 on o; train norm"""
WITH_BIASES = "; bitfit on q,k,v,o,up,down; ssf on q,v,down"


def inputs_of(name: str) -> dict[str, Any]:
    """Inputs that hold the trained tokens, wherever a model looks tokens up."""
    inputs = zoo.inputs(name)
    for tokens in (inputs["input_ids"], inputs.get("decoder_input_ids")):
        if tokens is not None:
            tokens[:, -2:] = torch.tensor(TOKENS)
    return inputs


@pytest.mark.parametrize("name", MODELS)
def test_many_methods_keep_every_promise_in_one_model(name: str) -> None:
    model = zoo.build(name)
    assert len({insertion.method.kind for insertion in pc.plan(model, ALL_AT_ONCE).insertions}) == KINDS
    tuned = pc.compile(model, ALL_AT_ONCE)
    stir(tuned)
    report = pc.verify(tuned)
    assert report.ok, str(report)


@pytest.mark.parametrize("name", MODELS)
def test_many_methods_learn_together_and_come_back_from_a_file(name: str, tmp_path: Path) -> None:
    model, inputs = zoo.build(name), inputs_of(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    tuned = pc.compile(model, ALL_AT_ONCE).train()
    stir(tuned)
    learning = {key: parameter for key, parameter in tuned.named_parameters() if parameter.requires_grad}
    started = {key: parameter.detach().clone() for key, parameter in learning.items()}
    optimiser = torch.optim.AdamW(learning.values(), lr=1e-3)
    for _ in range(3):
        optimiser.zero_grad()
        main_output(tuned(**inputs)).square().mean().backward()
        optimiser.step()
    assert [key for key in learning if not is_inserted(key)] == []
    assert [key for key, parameter in learning.items() if torch.equal(started[key], parameter)] == []
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    pc.save(tuned.eval(), tmp_path / "adapter")
    with torch.no_grad():
        loaded = main_output(pc.load(model, tmp_path / "adapter")(**inputs))
        # What the encoders of prompts gave is what was kept of them.
        torch.testing.assert_close(loaded, main_output(tuned(**inputs)), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_many_methods_fold_into_one_weight(name: str) -> None:
    has_biases = name not in ("t5", "falcon_new")
    tuned = pc.compile(zoo.build(name), FOLDING + WITH_BIASES * has_biases)
    stir(tuned)
    with torch.no_grad():
        apart = main_output(tuned(**zoo.inputs(name)))
        folded = main_output(pc.merge(tuned)(**zoo.inputs(name)))
    torch.testing.assert_close(folded, apart, atol=1e-5, rtol=1e-4)


def compiled(name: str, sentence: str) -> nn.Module:
    tuned = pc.compile(zoo.build(name), sentence)
    stir(tuned)
    return tuned


def learning(model: nn.Module) -> list[nn.Parameter]:
    """The inserted parameters, in the plan's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def inserted_in(module: nn.Module) -> dict[str, nn.Module]:
    """The insertions of a module by the last word of their names, such as `lora`."""
    children = module.get_submodule("inserted").named_children()
    return {name.rpartition("down_")[2].removeprefix("feed_forward_"): child for name, child in children}


Parts = dict[str, nn.Module]
Formula = Callable[[Tensor, Callable[[Tensor], Tensor], Parts], Tensor]
"""(x, the linear of the base, the insertions) -> what the projection gives together with them."""


def linear(weight: Tensor, x: Tensor) -> Tensor:
    return nn.functional.linear(x, weight)


def of_weight(change: Callable[[Tensor, Parts], Tensor]) -> Formula:
    """The formula of what maps the weight."""
    return lambda x, h, parts: linear(change(weight_of(h), parts), x)


def weight_of(h: Callable[[Tensor], Tensor]) -> Tensor:
    assert isinstance(h, nn.Linear)
    return h.weight


ON_ONE_PROJECTION: dict[str, Formula] = {
    # Beside the host, and so commuting.
    "lora r=2 on down; vera r=4 on down": lambda x, h, m: h(x) + m["lora"](x) + m["vera"](x),
    # After the host and all that joined it before; what joins later stands beside that.
    "lora r=2 on down; ssf on down": lambda x, h, m: m["ssf"](h(x) + m["lora"](x)),
    "ssf on down; lora r=2 on down": lambda x, h, m: m["ssf"](h(x)) + m["lora"](x),
    "ssf on down; bitfit add=true on down": lambda x, h, m: m["bitfit"](m["ssf"](h(x))),
    "bitfit add=true on down; ssf on down": lambda x, h, m: m["ssf"](m["bitfit"](h(x))),
    # Before the host and all that joined it before.
    "lora r=2 on down; ia3 on down": lambda x, h, m: h(m["ia3"](x)) + m["lora"](m["ia3"](x)),
    "ia3 on down; lora r=2 on down": lambda x, h, m: h(m["ia3"](x)) + m["lora"](x),
    # Maps of a weight, one of what the other gives.
    "dora r=2 on down; oft block_size=4 on down": of_weight(lambda w, m: m["oft"](m["dora"](w))),
    "oft block_size=4 on down; dora r=2 on down": of_weight(lambda w, m: m["dora"](m["oft"](w))),
    # What maps the weight comes before all the rest, wherever it is written.
    "lora r=2 on down; dora r=2 on down": lambda x, h, m: linear(m["dora"](weight_of(h)), x) + m["lora"](x),
    "dora r=2 on down; lora r=2 on down": lambda x, h, m: linear(m["dora"](weight_of(h)), x) + m["lora"](x),
    "ia3 on down; lora r=2 on down; ssf on down; hra r=2 on down": lambda x, h, m: m["ssf"](
        linear(m["hra"](weight_of(h)), m["ia3"](x)) + m["lora"](x)
    ),
}


@pytest.mark.parametrize("sentence", ON_ONE_PROJECTION)
def test_on_one_projection_the_order_of_the_plan_is_that_of_the_formula(sentence: str) -> None:
    tuned = compiled("llama", sentence)
    projection = tuned.get_submodule("model.layers.0.mlp.down_proj")
    plain = zoo.build("llama").get_submodule("model.layers.0.mlp.down_proj")
    x = torch.randn(2, 5, zoo.INNER, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = ON_ONE_PROJECTION[sentence](x, plain, inserted_in(projection))
        torch.testing.assert_close(projection(x), expected, atol=1e-5, rtol=1e-4)


ON_ONE_EDGE: dict[str, Callable[[Tensor, Tensor, Parts], Tensor]] = {
    # The activation y of a sub-layer that was given x.
    "adapters; compacter adapters after ffn": lambda x, y, m: m["compacter"](m["adapter"](y)),
    "compacter adapters after ffn; adapters": lambda x, y, m: m["adapter"](m["compacter"](y)),
    "adapters; parallel adapters width=4": lambda x, y, m: m["adapter"](y) + m["parallel_adapter"](x),
    "parallel adapters width=4; adapters": lambda x, y, m: m["adapter"](y + m["parallel_adapter"](x)),
    "adapters; pfeiffer adapters": lambda x, y, m: (
        m["adapter"](y) + m["pfeiffer_adapter"](x + m["adapter"](y))
    ),
    "pfeiffer adapters; adapters": lambda x, y, m: m["adapter"](y + m["pfeiffer_adapter"](x + y)),
}


@pytest.mark.parametrize("sentence", ON_ONE_EDGE)
def test_on_one_edge_the_order_of_the_plan_is_that_of_the_formula(sentence: str) -> None:
    tuned = compiled("handmade", sentence)
    block = tuned.get_submodule("blocks.0")
    seen: list[Tensor] = []
    block.get_submodule("inner").register_forward_hook(lambda _, given, y: seen.extend((*given, y)))
    with torch.no_grad():
        found = block(torch.randn(2, 5, zoo.HIDDEN, generator=torch.Generator().manual_seed(0)))
        x, y = seen
        expected = x + ON_ONE_EDGE[sentence](x, y, inserted_in(block))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kinds", [("loreft", "adapter"), ("adapter", "loreft")])
def test_on_one_block_the_order_of_the_plan_is_that_of_the_formula(kinds: tuple[str, str]) -> None:
    tuned = compiled("handmade", "; ".join(f"{kind} on block" for kind in kinds))
    block, plain = tuned.get_submodule("blocks.0"), zoo.build("handmade").get_submodule("blocks.0")
    first, second = (block.get_submodule(f"inserted.block_{kind}") for kind in kinds)
    x = torch.randn(2, 5, zoo.HIDDEN, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(block(x), second(first(plain(x))), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_prompts_of_several_rules_are_those_of_one_that_holds_them_all(name: str) -> None:
    """Attention sums over its keys: prompts of 2 and of 3 positions are one of 5, in either order."""
    base = zoo.build(name)
    apart = [
        pc.compile(base, "prefix length=3 reparametrised=false in self attention; deep prompts length=2"),
        pc.compile(base, "deep prompts length=2; prefix length=3 reparametrised=false in self attention"),
    ]
    together = pc.compile(base, "deep prompts length=5")
    stir(together)
    joint = dict(together.named_parameters())
    with torch.no_grad():
        for model in apart:
            for key, parameter in model.named_parameters():
                if is_inserted(key):
                    whole = joint[key.replace("core_prefix", "core_deep_prompts")]
                    parameter.copy_(whole[:, 2:] if "core_prefix" in key else whole[:, :2])
        expected = main_output(together(**zoo.inputs(name)))
        for model in apart:
            torch.testing.assert_close(main_output(model(**zoo.inputs(name))), expected, atol=1e-5, rtol=1e-4)


INPUTS = ["gpt2", "llama", "bert", "t5", "distilbert", "handmade"]


@pytest.mark.parametrize("name", INPUTS)
def test_of_several_prompts_at_the_input_the_last_stands_first(name: str) -> None:
    base = zoo.build(name)
    apart = pc.compile(base, 'prompt length=2; p-tuning length=3 encoder="none"')
    together = pc.compile(base, "prompt length=5")
    stir(apart)
    (whole,) = learning(together)
    with torch.no_grad():
        whole.copy_(torch.cat(learning(apart)[::-1]))
        found, expected = (main_output(model(**zoo.inputs(name))) for model in (apart, together))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("order", [1, -1])
def test_an_ensemble_beside_another_prompt_answers_by_the_mean(name: str, order: int) -> None:
    base, pseudo = zoo.build(name), 'p-tuning length=3 encoder="none"'
    together = pc.compile(base, "; ".join(["prompt length=2 ensemble=3", pseudo][::order]))
    stir(together)
    prompts, tokens = learning(together)[::order]
    answers: list[Tensor] = []
    with torch.no_grad():
        for prompt in prompts:
            alone = pc.compile(base, "; ".join(["prompt length=2", pseudo][::order]))
            for parameter, value in zip(learning(alone)[::order], (prompt, tokens), strict=True):
                parameter.copy_(value)
            answers.append(main_output(alone(**zoo.inputs(name))))
        found = main_output(together(**zoo.inputs(name)))
    torch.testing.assert_close(found, torch.stack(answers).mean(0), atol=1e-5, rtol=1e-4)
