"""What prefix-tuning promises: its MLP is shared, counted once and dropped; real words are a start."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import peft_compiler as pc
from peft_compiler.errors import LoweringError, PlanError
from peft_compiler.lowering.observing import observe
from peft_compiler.methods import DeepPrompts, Prefix
from peft_compiler.site import Core, Role, Site
from peft_compiler.spec.read import read_spec
from peft_compiler.spec.write import to_sentence
from peft_compiler.testing.places import examples
from tests import zoo
from tests.test_compiling import CACHED, by_cache, main_output, stir

EXAMPLE = examples()["core"]
WORDS = (5, 6, 7, 8)


class Characters:
    """One token for each letter."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [ord(letter) - ord("a") for letter in text]


@pytest.fixture(scope="module")
def gpt2_medium() -> nn.Module:
    with torch.device("meta"):
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=1024, n_layer=24, n_head=16))


def test_the_count_is_the_papers_once_the_mlp_is_dropped(gpt2_medium: nn.Module) -> None:
    plan = pc.plan(gpt2_medium, "prefix tuning length=10")
    # The authors' own: embedding 10 · 1024, then layers 1024 → 512 and 512 → 24 · 2 · 1024.
    assert plan.trainable == 10 * 1024 + 1025 * 512 + 513 * 24 * 2 * 1024
    assert plan.shared == 10 * 1024 + 1025 * 512
    assert plan.settled.trainable == 491_520
    assert str(plan).endswith("; 535,040 of them are shared by the places of a rule")


@pytest.mark.parametrize("method", [Prefix, DeepPrompts])
def test_the_mlp_is_that_of_the_paper(method: type[Prefix] | type[DeepPrompts]) -> None:
    module: Any = method(length=3, width=7, reparametrised=True).build(
        EXAMPLE.site, EXAMPLE.host, torch.Generator().manual_seed(0)
    )
    hidden = torch.tanh(module.trunk.embeddings @ module.trunk.down.weight.T + module.trunk.down.bias)
    joint = (hidden @ module.up.weight.T + module.up.bias).view(3, 2, 8 + 6)
    keys, values = module()
    torch.testing.assert_close(keys, joint[..., :8].transpose(0, 1))
    torch.testing.assert_close(values, joint[..., 8:].transpose(0, 1))


def trunks(tuned: nn.Module) -> Iterator[nn.Module]:
    return (module for name, module in tuned.named_modules() if name.endswith(".trunk"))


def test_every_attention_of_a_kind_shares_one_trunk() -> None:
    tuned = pc.compile(zoo.build("bart"), "prefix tuning length=3 width=8")
    # named_modules() gives each module once: encoder, decoder, and across.
    assert len(list(trunks(tuned))) == 3
    assert (
        sum(p.numel() for p in tuned.parameters() if p.requires_grad)
        == pc.plan(zoo.build("bart"), "prefix tuning length=3 width=8").trainable
    )
    both = "prefix tuning length=3 width=8 of layers 0; prefix tuning length=3 width=8 of layers 1"
    assert len(list(trunks(pc.compile(zoo.build("llama"), both)))) == 2


@pytest.mark.parametrize("sentence", ["prefix tuning length=4", "deep prompts length=4 reparametrised=true"])
def test_only_keys_and_values_are_saved(sentence: str, tmp_path: Path) -> None:
    base = zoo.build("llama")
    tuned = pc.compile(base, sentence)
    stir(tuned)
    pc.save(tuned, tmp_path / "adapter")
    loaded = pc.load(base, tmp_path / "adapter")
    assert {name.rpartition(".")[2] for name, p in loaded.named_parameters() if p.requires_grad} == {
        "keys", "values",
    }  # fmt: skip
    assert sum(p.numel() for p in loaded.parameters() if p.requires_grad) == zoo.LAYERS * 4 * 2 * 16
    with torch.no_grad():
        assert torch.equal(loaded(**zoo.inputs("llama")).logits, tuned(**zoo.inputs("llama")).logits)
    pc.save(loaded, tmp_path / "again")
    assert (tmp_path / "again/adapter.json").read_text() == (tmp_path / "adapter/adapter.json").read_text()
    assert pc.verify(loaded).ok


@pytest.mark.parametrize("name", [name for name in CACHED if name in zoo.SEQ2SEQ])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_all_three_attentions_of_an_encoder_decoder(name: str, attention: str) -> None:
    base = zoo.build(name, attention if attention == "eager" else None)
    assert len(pc.plan(base, "prefix tuning").insertions) == 3 * zoo.LAYERS
    tuned = pc.compile(base, "prefix tuning length=3 width=8")
    stir(tuned)
    with torch.no_grad():
        full, last = by_cache(tuned, name, zoo.inputs(name))
    torch.testing.assert_close(last, full, atol=1e-5, rtol=1e-5)
    report = pc.verify(tuned)
    assert report.ok, str(report)


# ---- real words


def cores(model: nn.Module) -> list[Site]:
    return [site for site in pc.find_sites(model) if site.role is Role.ATTENTION_CORE]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "gemma3", "falcon_multi_query", "bloom", "gptj"])
def test_the_keys_and_values_of_words_are_those_of_the_cache(name: str, attention: str) -> None:
    model = zoo.build(name, attention if attention == "eager" else None)
    ids = torch.tensor([WORDS])
    with torch.no_grad():
        cache = model(input_ids=ids, use_cache=True).past_key_values
    found = observe(model, cores(model), WORDS, {"input_ids": ids, "use_cache": False})
    for (keys, values), layer in zip(found, cache.layers, strict=True):
        kept = layer.keys.shape[2]  # of a sliding window only the end
        torch.testing.assert_close(keys[:, -kept:], layer.keys[0], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(values[:, -kept:], layer.values[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "name", [n for n in zoo.ALL if n not in ("mamba", "vit", "whisper", "torch_encoder")]
)
def test_words_are_observed_in_every_attention(name: str) -> None:
    model = zoo.build(name)
    for site, (keys, values) in zip(
        cores(model), observe(model, cores(model), WORDS, zoo.inputs(name)), strict=True
    ):
        core = site.place
        assert isinstance(core, Core)
        assert tuple(keys.shape) == (core.key_heads, len(WORDS), core.key_width)
        assert tuple(values.shape) == (core.key_heads, len(WORDS), core.value_width)


@pytest.mark.parametrize("reparametrised", ["true", "false"])
@pytest.mark.parametrize("name", ["llama", "bert", "t5"])
def test_a_prefix_starts_as_the_words(name: str, reparametrised: str) -> None:
    model = zoo.build(name).train()
    sentence = f'prefix tuning text="fghi" reparametrised={reparametrised}'
    tuned = pc.compile(model, sentence, tokenizer=Characters())
    assert all(module.training for module in model.modules())
    insertions = pc.plan(model, sentence, tokenizer=Characters()).insertions
    found = observe(model, [i.site for i in insertions], WORDS, zoo.inputs(name))
    for insertion, (keys, values) in zip(insertions, found, strict=True):
        ours = tuned.get_submodule(insertion.path)()
        torch.testing.assert_close(ours[0].detach(), keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours[1].detach(), values, atol=1e-4, rtol=1e-4)
    main_output(tuned(**zoo.inputs(name))).square().mean().backward()


def test_a_causal_model_goes_on_as_if_it_had_read_the_words() -> None:
    """For a text in front, up to its position: rotary keys were turned as at the beginning."""
    model = zoo.build("llama")
    tuned = pc.compile(model, 'prefix tuning text="fghi"', tokenizer=Characters())
    ids = zoo.inputs("llama")["input_ids"]
    with torch.no_grad():
        cache = model(input_ids=torch.tensor([WORDS, WORDS]), use_cache=True).past_key_values
        positions = torch.arange(ids.shape[1]).expand(2, -1)
        expected = model(input_ids=ids, past_key_values=cache, position_ids=positions).logits
        torch.testing.assert_close(tuned(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-4)


def test_words_need_a_model_that_reads_tokens() -> None:
    model = zoo.build("vit")
    with pytest.raises(
        LoweringError,
        match="words cannot be read by a model whose example has no token ids; found pixel_values",
    ):
        pc.compile(model, 'prefix tuning text="fghi"', zoo.inputs("vit"), tokenizer=Characters())


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"text": "a"},
            "its text cannot be read without a tokenizer; pass one: compile(..., tokenizer=...)",
        ),
        (
            {"text": "ab", "tokens": (0, 1), "length": 3},
            "length=3 is not that of the text, which has 2 tokens; leave it out",
        ),
        (
            {"text": "abc", "tokens": (0, 1, 2), "width": 2},
            "width=2 is too narrow for the MLP to give 3 positions; take more",
        ),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, object], problem: str) -> None:
    assert list(Prefix.model_validate(settings).problems(EXAMPLE.site)) == [problem]


def test_it_reads_well_in_sentences() -> None:
    spec = read_spec(
        'prefix tuning length=5 on every layer in decoder; prefix-tuning text="summarize" in encoder'
    )
    assert [type(rule.use) for rule in spec.rules] == [Prefix, Prefix]
    assert read_spec(to_sentence(spec)) == spec


def test_two_prefixes_at_one_attention_are_refused() -> None:
    with pytest.raises(PlanError, match="share 2 places, where one method can stand only once"):
        pc.plan(zoo.build("llama"), "prefix tuning; prefix tuning")
