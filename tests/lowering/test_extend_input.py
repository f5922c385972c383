"""A tower with a soft prompt computes what the base does on embeddings that were put together by hand."""

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

import peft_compiler as pc
from peft_compiler.errors import LoweringError
from peft_compiler.plan import is_inserted
from tests import zoo
from tests.test_compiling import CACHED, by_cache, main_output, stir

LENGTH = 3
WITH_TOKENS = [name for name in zoo.ALL if name not in ("vit", "torch_encoder")]
CAUSAL = [name for name in zoo.CAUSAL if name != "mamba"]


def prompted(name: str, rules: str = "", attention: str | None = None) -> tuple[nn.Module, nn.Module, Tensor]:
    """Returns the base, the compiled model, and its prompt."""
    base = zoo.build(name, attention)
    tower = " in decoder" if name == "whisper" else ""
    tuned = pc.compile(base, f"prompt length={LENGTH}{tower}{rules}")
    stir(tuned)
    path = next(i.path for i in pc.plan(base, f"prompt{tower}").insertions)
    return base, tuned, tuned.get_submodule(path)().detach()


def by_hand(base: nn.Module, prompt: Tensor, ids: Tensor, mask: Tensor, in_front: bool = True) -> Any:
    """Calls the base on the prompt and the embeddings of `ids`: in front of padding, or behind it."""
    embeddings = base.get_input_embeddings()(ids)
    rows = len(ids)
    padded = [0 if in_front else int(row.argmax()) for row in mask]
    arguments = {
        "inputs_embeds": behind(padded, prompt.expand(rows, -1, -1), embeddings),
        "attention_mask": behind(padded, mask.new_ones(rows, LENGTH), mask),
    }
    if "use_cache" in inspect.signature(base.forward).parameters:
        arguments["use_cache"] = False
    return base(**arguments)


def behind(padded: list[int], prompts: Tensor, own: Tensor) -> Tensor:
    """Returns the prompts of each row behind its first positions, of which it has so many."""
    rows = zip(padded, prompts, own, strict=True)
    return torch.stack([torch.cat([row[:count], prompt, row[count:]]) for count, prompt, row in rows])


@pytest.mark.parametrize("name", CAUSAL)
def test_a_decoder_computes_what_the_base_does_by_hand(name: str) -> None:
    base, tuned, prompt = prompted(name)
    inputs = zoo.inputs(name)
    with torch.no_grad():
        mask, counts = inputs["attention_mask"], takes_positions(base)  # padding too
        expected = by_hand(base, prompt, inputs["input_ids"], mask, in_front=counts).logits
        found = tuned(**inputs).logits
    for row, logits, of_row in zip(mask, found, expected, strict=True):
        count = int(row.sum())
        torch.testing.assert_close(logits[-count:], of_row[-count:], atol=1e-5, rtol=1e-5)


def takes_positions(base: nn.Module) -> bool:
    return "position_ids" in inspect.signature(base.base_model.forward).parameters


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_decoder_attends_to_the_prompt_of_its_encoder(name: str) -> None:
    base, tuned, prompt = prompted(name)
    inputs = zoo.inputs(name)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    with torch.no_grad():
        states = by_hand(base.get_encoder(), prompt, ids, mask)[0]
        longer = torch.cat([mask.new_ones(len(ids), LENGTH), mask], 1)
        expected = base(
            encoder_outputs=BaseModelOutput(states),
            attention_mask=longer,
            decoder_input_ids=inputs["decoder_input_ids"],
        ).logits
        torch.testing.assert_close(tuned(**inputs).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["bert", "roberta", "deberta_v2", "electra", "distilbert"])
def test_a_classifier_reads_the_first_token_not_the_prompt(name: str) -> None:
    base, tuned, _ = prompted(name)
    inputs, first = zoo.inputs(name), []
    head = tuned.get_submodule(
        "bert.pooler" if name == "bert" else "classifier" if name != "distilbert" else "pre_classifier"
    )
    head.register_forward_pre_hook(lambda _, args: first.append(args[0]))
    backbone = getattr(tuned, tuned.base_model_prefix)
    with torch.no_grad():
        tuned(**inputs)
        states = backbone(**inputs).last_hidden_state
    seen = first[0][:, 0] if first[0].dim() == 3 else first[0]
    assert states.shape[1] == inputs["input_ids"].shape[1]
    if name != "deberta_v2":  # which pools before its classifier
        torch.testing.assert_close(seen, states[:, 0])
    assert base.training == tuned.training


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CACHED)
def test_incremental_logits_equal_full_logits(name: str, attention: str) -> None:
    if attention == "eager" and name == "mpt":
        pytest.skip("has one implementation only")
    _, tuned, _ = prompted(name, attention=attention if attention == "eager" else None)
    with torch.no_grad():
        full, last = by_cache(tuned, name, zoo.inputs(name))
    torch.testing.assert_close(last, full, atol=1e-5, rtol=1e-5)


def greedy(base: nn.Module, prompt: Tensor, ids: Tensor, mask: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Generates without a cache, by hand."""
    embed = base.get_input_embeddings()
    for _ in range(steps):
        rows, padded = len(ids), [int(row.argmax()) for row in mask]
        arguments = {
            "inputs_embeds": behind(padded, prompt.expand(rows, -1, -1), embed(ids)),
            "attention_mask": behind(padded, mask.new_ones(rows, LENGTH), mask),
        }
        if takes_positions(base):
            own = (mask.cumsum(-1) - 1).clamp(min=0) + LENGTH
            arguments["position_ids"] = behind(padded, torch.arange(LENGTH).expand(rows, -1), own)
        logits = base(**arguments, use_cache=False).logits[:, -1]
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
        mask = torch.cat([mask, mask.new_ones(rows, 1)], 1)
    return ids, logits


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "whole"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3", "mistral", "falcon_multi_query", "bloom"])
def test_generating_with_a_cache_equals_generating_by_hand(name: str, cache: str, padded: bool) -> None:
    base, tuned, prompt = prompted(name)
    inputs = zoo.inputs(name)
    if not padded:  # of which transformers drops the mask
        inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    settings = {"cache_implementation": "static"} if cache == "static" else {}
    with torch.no_grad():
        ids, logits = greedy(base, prompt, inputs["input_ids"], inputs["attention_mask"], 5)
        found = tuned.generate(
            **inputs, max_new_tokens=5, do_sample=False, eos_token_id=None, output_logits=True,
            return_dict_in_generate=True, **settings,
        )  # fmt: skip
    assert torch.equal(found.sequences, ids)
    torch.testing.assert_close(found.logits[-1], logits, atol=1e-5, rtol=1e-5)
    assert int(found.past_key_values.get_seq_length()) == ids.shape[1] - 1


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "bart"])
def test_what_is_returned_has_the_length_of_the_tokens(name: str) -> None:
    tower = " in decoder" if name == "bart" else ""
    tuned = pc.compile(zoo.build(name, "eager"), f"prompt length={LENGTH}{tower}")
    inputs = zoo.inputs(name)
    length = inputs["decoder_input_ids" if name == "bart" else "input_ids"].shape[1]
    output = tuned(**inputs, output_hidden_states=True, output_attentions=True)
    prefix = "decoder_" if name == "bart" else ""
    states, maps = output[f"{prefix}hidden_states"], output[f"{prefix}attentions"]
    assert [tuple(state.shape[:2]) for state in states] == [(2, length)] * (zoo.LAYERS + 1)
    assert [tuple(attention.shape[-2:]) for attention in maps] == [(length, length)] * zoo.LAYERS
    if name == "bart":
        across = inputs["input_ids"].shape[1]
        assert [tuple(cross.shape[-2:]) for cross in output.cross_attentions] == [(length, across)] * 2


def test_labels_are_those_of_the_tokens() -> None:
    _, tuned, _ = prompted("llama")
    inputs = zoo.inputs("llama")
    output = tuned(**inputs, labels=inputs["input_ids"])
    expected = nn.functional.cross_entropy(
        output.logits[:, :-1].flatten(0, 1), inputs["input_ids"][:, 1:].flatten()
    )
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_mask_for_pairs_says_the_same_as_one_for_keys(name: str, kind: torch.dtype) -> None:
    _, tuned, _ = prompted(name)
    inputs = zoo.inputs(name)
    length, keys = inputs["input_ids"].shape[1], inputs["attention_mask"].bool()
    visible = keys[:, None, None, :] & torch.ones(length, length, dtype=torch.bool).tril()
    visible = visible | torch.eye(length, dtype=torch.bool)  # a query that sees nothing is no use to anyone
    hidden = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    pairs = visible if kind == torch.bool else hidden
    with torch.no_grad():
        expected = tuned(**inputs).logits[keys]
        found = tuned(input_ids=inputs["input_ids"], attention_mask=pairs).logits[keys]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma3", "bert", "t5", "bart", "handmade"])
def test_it_composes_with_every_other_kind_of_insertion(name: str) -> None:
    _, tuned, _ = prompted(
        name, "; LoRA r=2 on q,v; adapters after FFN; deep prompts length=2; LoRA r=2 on embedding"
    )
    main_output(tuned(**zoo.inputs(name))).square().mean().backward()
    missed = [
        key
        for key, p in tuned.named_parameters()
        if is_inserted(key) and not (p.grad is not None and p.grad.any())
    ]
    assert missed == []


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5", "mamba", "handmade"])
def test_copies_and_pickles_keep_the_function(name: str) -> None:
    _, tuned, _ = prompted(name)
    inputs = zoo.inputs(name)
    with torch.no_grad():
        expected = main_output(tuned(**inputs))
        for other in (copy.deepcopy(tuned), pickle.loads(pickle.dumps(tuned))):
            assert torch.equal(main_output(other(**inputs)), expected)


@pytest.mark.parametrize("name", WITH_TOKENS)
def test_every_model_keeps_every_promise(name: str) -> None:
    _, tuned, _ = prompted(name)
    report = pc.verify(tuned)
    assert report.ok, str(report)


def test_a_module_without_embeddings_exchanges_them_at_its_lookup() -> None:
    base, tuned, prompt = prompted("handmade")
    inputs = zoo.inputs("handmade")
    mask = torch.cat([torch.ones(2, LENGTH, dtype=torch.long), inputs["attention_mask"]], 1)
    with torch.no_grad():
        x = torch.cat([prompt.expand(2, -1, -1), base.tokens(inputs["input_ids"])], 1)
        for block in base.blocks:
            x = block(x, mask)
        torch.testing.assert_close(tuned(**inputs), base.scores(x)[:, LENGTH:])
    assert "inserted.input_prompt" in tuned.code


def test_a_lookup_deep_inside_a_module_without_embeddings_is_refused() -> None:
    class Deep(nn.Module):
        """Looks tokens up in a child of a child."""

        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Sequential(nn.Embedding(zoo.VOCABULARY, zoo.HIDDEN), nn.Identity()))
            self.blocks = nn.ModuleList(zoo.HandmadeBlock() for _ in range(2))

        def forward(self, input_ids: Tensor) -> Tensor:
            x = self.stem(input_ids)
            for block in self.blocks:
                x = block(x)
            return x

    with pytest.raises(
        LoweringError,
        match=r"the forward takes no 'inputs_embeds' and does not look up stem\.0\.0 itself; expected one",
    ):
        pc.compile(Deep(), "prompt", torch.randint(0, 9, (2, 5)))


def test_what_is_called_can_be_read() -> None:
    base, tuned, _ = prompted("llama")
    assert "inserted.input_prompt" in tuned.get_submodule("model").code
    assert inspect.signature(tuned.model.forward) == inspect.signature(base.model.forward)
