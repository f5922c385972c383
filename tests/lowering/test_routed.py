"""A stack that runs twice: what is given to its places reaches them, and nobody else, wherever they run."""

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import peft_compiler as pc
from peft_compiler.lowering.lower import base_of
from peft_compiler.methods._routing import given_now
from tests import zoo
from tests.lowering.mixtures import SPEC, mixed
from tests.test_compiling import main_output


def runs_of(module: nn.Module) -> list[int]:
    """Returns a list that grows by one each time the module runs."""
    runs: list[int] = []
    module.register_forward_hook(lambda *_: runs.append(1))
    return runs


def gradients(tuned: nn.Module, name: str) -> list[Tensor]:
    main_output(tuned(**zoo.inputs(name), use_cache=False)).square().mean().backward()
    return [parameter.grad for parameter in tuned.parameters() if parameter.requires_grad]


def test_threads_share_a_model() -> None:
    _, tuned = mixed("llama")
    inputs = [zoo.inputs("llama", 2, 4 + number) for number in range(8)]
    found: list[Tensor | None] = [None] * 8
    together = threading.Barrier(8)

    def run(number: int) -> None:
        together.wait()
        with torch.no_grad():
            for _ in range(4):
                found[number] = tuned(**inputs[number]).logits

    with torch.no_grad():
        expected = [tuned(**each).logits for each in inputs]
    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


# What torch says of a reentrant checkpoint without gradients is true of the first run, and as it should be.
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["llama", "bart"])
def test_a_block_that_is_run_again_for_its_gradients_is_given_the_same(name: str, reentrant: bool) -> None:
    plain, saving = (mixed(name)[1].train() for _ in range(2))
    for module in (*plain.modules(), *saving.modules()):
        # A run more draws more: without dropout, both draw nothing.
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    saving.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": reentrant})
    saving.enable_input_require_grads()
    block = next(module for path, module in saving.named_modules() if path.endswith("layers.0"))
    projection = next(module for path, module in block.named_modules() if path.endswith("q_proj"))
    blocks, projections = runs_of(block), runs_of(projection)
    for found, expected in zip(gradients(saving, name), gradients(plain, name), strict=True):
        torch.testing.assert_close(found, expected)
    assert (len(blocks), len(projections)) == (2, 3)
    assert given_now() is None


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_torch_compile_takes_it_whole_with_its_gradients(name: str) -> None:
    _, tuned = mixed(name)
    torch._dynamo.reset()
    whole = torch.compile(tuned, backend="aot_eager", fullgraph=True, dynamic=True)
    extra = {"use_cache": False} if name == "llama" else {}
    for size in ((2, 7), (3, 11)):
        outputs = []
        for model in (tuned, whole):
            tuned.zero_grad()
            output = main_output(model(**zoo.inputs(name, *size), **extra))
            output.square().mean().backward()
            outputs.append((output, *[p.grad.clone() for p in tuned.parameters() if p.requires_grad]))
        for found, expected in zip(*outputs, strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["llama", "bert", "vit", "bart"])
def test_who_asks_for_all_states_gets_those_of_the_second_run_alone(name: str) -> None:
    base, tuned = mixed(name)
    for key in ("hidden_states", "encoder_hidden_states"):
        with torch.no_grad():
            ours, bases = (model(**zoo.inputs(name), output_hidden_states=True) for model in (tuned, base))
        if key in bases:
            assert len(ours[key]) == len(bases[key]) == zoo.LAYERS + 1
            assert not torch.equal(ours[key][-1], bases[key][-1])


def test_several_routers_read_one_run() -> None:
    spec = "x-lora r=2 on q; x-lora r=1 layerwise=false scaling_pass=0.5 on v"
    _, tuned = mixed("llama", spec)
    runs = runs_of(tuned.model.layers[0].self_attn.q_proj)
    routers = dict(tuned.model.inserted.named_children())
    assert list(routers) == ["router_1", "router_2"]
    tuned(**zoo.inputs("llama"))
    assert len(runs) == 2


def test_the_places_of_a_rule_have_one_router_and_it_reads_the_last_states_of_the_first_run() -> None:
    base, tuned = mixed("llama", "x-lora r=2 depth=2 width=16 on q,v")
    (router,) = tuned.model.inserted.children()
    layer = tuned.model.layers[1].self_attn
    assert layer.q_proj.inserted.query_x_lora.router is router is layer.v_proj.inserted.value_x_lora.router
    read: list[Tensor] = []
    router.register_forward_hook(lambda _, args, __: read.append(args[0]))
    with torch.no_grad():
        tuned(**zoo.inputs("llama"))
        expected = base.model(**zoo.inputs("llama")).last_hidden_state
    assert len(read) == 1
    assert torch.equal(read[0], expected)


def test_states_are_those_of_the_norm_where_the_root_returns_scores() -> None:
    base, tuned = mixed("handmade", "x-lora r=2 on q")
    read: list[Tensor] = []
    tuned.inserted.router_1.register_forward_hook(lambda _, args, __: read.append(args[0]))
    states: list[Tensor] = []
    base.blocks[-1].register_forward_hook(lambda _, __, output: states.append(output))
    with torch.no_grad():
        tuned(**zoo.inputs("handmade"))
        base(**zoo.inputs("handmade"))
    assert torch.equal(read[0], states[0])


def test_a_prompt_stands_in_front_in_both_runs() -> None:
    _, tuned = mixed("llama", f"{SPEC}; prompt length=3")
    read: list[Tensor] = []
    tuned.model.inserted.router_1.register_forward_hook(lambda _, args, __: read.append(args[0]))
    tuned(**zoo.inputs("llama", 2, 7))
    assert read[0].shape[:2] == (2, 10)


def test_a_place_by_itself_does_not_guess() -> None:
    _, tuned = mixed("llama")
    with pytest.raises(pc.LoweringError) as caught:
        tuned.model.layers[0].self_attn.q_proj(torch.randn(2, 5, zoo.HIDDEN))
    assert str(caught.value) == (
        "a place that a router decides about ran by itself, outside of 'model', which gives it the "
        "router's answer; call that, and checkpoint no less than a whole block"
    )


def test_a_checkpoint_within_a_block_is_refused_not_wrong() -> None:
    _, tuned = mixed("llama")
    attention = tuned.model.layers[0].self_attn
    forward = attention.forward
    attention.forward = lambda *args, **kwargs: checkpoint(forward, *args, use_reentrant=False, **kwargs)
    loss = tuned(**zoo.inputs("llama"), use_cache=False).logits.square().mean()
    with pytest.raises(pc.LoweringError, match="checkpoint no less than a whole block"):
        loss.backward()


def test_a_call_that_fails_leaves_nothing_behind() -> None:
    _, tuned = mixed("llama")
    inputs = zoo.inputs("llama")
    with torch.no_grad():
        expected = tuned(**inputs).logits

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = tuned.model.layers[1].register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        tuned(**inputs)
    handle.remove()
    assert given_now() is None
    with torch.no_grad():
        assert torch.equal(tuned(**inputs).logits, expected)


def test_a_copy_goes_by_its_own_router() -> None:
    _, tuned = mixed("llama")
    other = copy.deepcopy(tuned)
    with torch.no_grad():
        before = tuned(**zoo.inputs("llama")).logits
        for parameter in other.model.inserted.parameters():
            parameter.add_(1)
        assert torch.equal(tuned(**zoo.inputs("llama")).logits, before)
        assert not torch.equal(other(**zoo.inputs("llama")).logits, before)


def test_every_promise_is_kept_and_the_base_comes_back_plain() -> None:
    _, tuned = mixed("llama")
    report = pc.verify(tuned)
    assert report.ok, str(report)
    plain = base_of(tuned)
    assert [type(module) for module in plain.modules()] == [type(m) for m in zoo.build("llama").modules()]
    with pytest.raises(pc.MergeError, match="its update of a weight is another one for every token"):
        pc.merge(tuned)
