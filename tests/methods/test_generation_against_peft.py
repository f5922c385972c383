"""Greedy, beam search and sampling with prompts and prefixes, beside peft's on the same values.

They give the same tokens wherever both count positions alike. Where they do not, positions are the whole
difference; ours gives with a cache what it gives without one.
"""

from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

import peft_compiler as pc
from peft_compiler.lowering.compilation import compilation_of
from tests import zoo
from tests.methods.peft_oracle import by_peft
from tests.methods.test_prompts_against_peft import LENGTH, stirred

pytestmark = pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")  # peft's
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "beam": {"do_sample": False, "num_beams": 4},
    "sampling": {"do_sample": True},
    "beam sampling": {"do_sample": True, "num_beams": 3},
}
NEW = 8

every_mode = pytest.mark.parametrize("mode", MODES)
either_row = pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])


def sharp(name: str) -> nn.Module:
    """Returns a model that is surer of its tokens than a fresh one, so that a small difference shows."""
    base = zoo.build(name)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.mul_(3.0 if parameter.dim() > 1 else 1.0)
    return base


def without_positions(base: nn.Module) -> nn.Module:
    with torch.no_grad():
        base.get_submodule("transformer.wpe").weight.zero_()
    return base


def pair(base: nn.Module, name: str, kind: str) -> tuple[Any, Any]:
    """Returns the base with prompts or prefixes of equal values, compiled and by peft."""
    decodes_states = name in zoo.SEQ2SEQ
    settings: dict[str, Any] = {"task_type": "SEQ_2_SEQ_LM" if decodes_states else "CAUSAL_LM"}
    settings |= {"num_transformer_submodules": 1} if decodes_states else {}
    config = {"prompt": peft.PromptTuningConfig, "prefix": peft.PrefixTuningConfig}[kind]
    theirs = by_peft(base, config(num_virtual_tokens=LENGTH, **settings))
    stirred(theirs.prompt_encoder)
    table = theirs.prompt_encoder["default"].embedding.weight.detach()
    where = " in decoder in self attention" if decodes_states else ""
    prefix = f"prefix tuning length={LENGTH} reparametrised=false{where}"
    ours: Any = pc.compile(base, f"prompt length={LENGTH}" if kind == "prompt" else prefix, zoo.inputs(name))
    modules: list[Any] = [ours.get_submodule(i.path) for i in compilation_of(ours).plan.insertions]
    with torch.no_grad():
        if kind == "prompt":
            next(modules[0].parameters()).copy_(table)
        for layer, module in enumerate(modules if kind == "prefix" else ()):
            parts = table.view(LENGTH, len(modules), 2, len(module.keys), -1)[:, layer].transpose(0, 2)
            module.keys.copy_(parts[:, 0])
            module.values.copy_(parts[:, 1])
    return ours.eval(), theirs


def given(name: str, padded: bool) -> dict[str, Tensor]:
    inputs = {key: zoo.inputs(name, 3, 6)[key] for key in ("input_ids", "attention_mask")}
    return inputs if padded else inputs | {"attention_mask": torch.ones_like(inputs["input_ids"])}


def tokens(model: Any, inputs: dict[str, Tensor], mode: str, use_cache: bool = True) -> Tensor:
    torch.manual_seed(0)
    return model.generate(
        **inputs, max_new_tokens=NEW, min_new_tokens=NEW, use_cache=use_cache, **MODES[mode]
    )


@every_mode
@either_row
@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_without_positions_all_tokens_are_pefts(kind: str, padded: bool, mode: str) -> None:
    ours, theirs = pair(without_positions(sharp("gpt2")), "gpt2", kind)
    assert torch.equal(tokens(ours, given("gpt2", padded), mode), tokens(theirs, given("gpt2", padded), mode))


@every_mode
@either_row
@pytest.mark.parametrize("name", ["llama", "t5", "bart"])
def test_with_prompts_all_tokens_are_pefts(name: str, padded: bool, mode: str) -> None:
    ours, theirs = pair(sharp(name), name, "prompt")
    assert torch.equal(tokens(ours, given(name, padded), mode), tokens(theirs, given(name, padded), mode))


@every_mode
@pytest.mark.parametrize("kind", ["prompt", "prefix"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bart"])
def test_ours_are_the_same_without_a_cache(name: str, kind: str, mode: str) -> None:
    ours, _ = pair(sharp(name), name, kind)
    inputs = given(name, padded=True)
    assert torch.equal(tokens(ours, inputs, mode), tokens(ours, inputs, mode, use_cache=False))


@torch.no_grad()
def likeliest(model: Any, sequences: Tensor, positions: Tensor, **more: Tensor) -> Tensor:
    """Returns the tokens that a model finds the likeliest after each but the last, at these positions."""
    logits: Tensor = model(input_ids=sequences[:, :-1], position_ids=positions, **more).logits
    return logits[:, -NEW:].argmax(-1)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_peft_moves_the_tokens_by_the_length_of_a_prefix(name: str) -> None:
    ours, theirs = pair(sharp(name), name, "prefix")
    sequences = tokens(theirs, given(name, padded=False), "greedy")
    assert not torch.equal(sequences, tokens(ours, given(name, padded=False), "greedy"))
    own = torch.arange(sequences.shape[1] - 1).expand(len(sequences), -1)
    assert torch.equal(likeliest(ours, sequences, own + LENGTH), sequences[:, -NEW:])
    assert not torch.equal(likeliest(ours, sequences, own), sequences[:, -NEW:])


def test_peft_counts_padding_as_positions_behind_a_prompt() -> None:
    ours, theirs = pair(sharp("gpt2"), "gpt2", "prompt")
    inputs = given("gpt2", padded=True)
    sequences, mine = tokens(theirs, inputs, "greedy"), tokens(ours, inputs, "greedy")
    assert torch.equal(sequences[1:], mine[1:])  # rows without padding
    assert not torch.equal(sequences[0], mine[0])
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, NEW - 1), value=1)
    counted = torch.arange(sequences.shape[1] - 1).expand(len(sequences), -1)
    assert torch.equal(likeliest(ours, sequences, counted, attention_mask=mask), sequences[:, -NEW:])


def test_with_a_prefix_peft_gives_other_tokens_without_a_cache() -> None:
    ours, theirs = pair(sharp("t5"), "t5", "prefix")
    inputs = given("t5", padded=False)
    cached, uncached = (tokens(theirs, inputs, "beam", use_cache) for use_cache in (True, False))
    assert not torch.equal(cached, uncached)
    cached, uncached = (tokens(ours, inputs, "beam", use_cache) for use_cache in (True, False))
    assert torch.equal(cached, uncached)
