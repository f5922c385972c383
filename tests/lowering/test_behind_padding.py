"""A row padded on the left has its prompts next to its tokens, and continues as it does alone."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, JambaConfig, JambaForCausalLM, StaticCache

from peft_compiler.compiling import compile
from peft_compiler.errors import LoweringError
from peft_compiler.lowering.behind_padding import behind_padding, without_prompts
from peft_compiler.lowering.prompted_mask import padding_of
from tests import zoo
from tests.test_compiling import stir

PADDED, NEW = 6, 5
WINDOWED = ["gemma3", "mistral"]
SPECS = {
    "prompt": "prompt length=3",
    "two prompts": "prompt length=2; p-tuning length=1 encoder=mlp",
    "ensemble": "prompt length=2 ensemble=3",
    "prompt and prefix": "prompt length=2; prefix length=2",
}


def batch(name: str = "gemma3") -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns a short row beside a longer one, padded by more than a window holds, and that row alone."""
    inputs = zoo.inputs(name, 2, 11)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["attention_mask"][0, :PADDED] = 0
    return inputs, {key: value[:1, PADDED:] for key, value in inputs.items()}


def tuned(name: str, spec: str = "prompt length=3", attention: str | None = None) -> nn.Module:
    model = compile(zoo.build(name, attention), spec)
    stir(model)
    return model


def continued(model: nn.Module, inputs: dict[str, Tensor], **settings: Any) -> Any:
    """Returns the tokens that follow the first row, and their logits, of all its beams."""
    settings = {"max_new_tokens": NEW, "eos_token_id": None, "do_sample": False} | settings
    with torch.no_grad():
        given = model.generate(**inputs, **settings, output_logits=True, return_dict_in_generate=True)
    rows = settings.get("num_beams", 1)
    return given.sequences[0, -NEW:], torch.stack([step[:rows] for step in given.logits])


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("name", WINDOWED)
def test_it_continues_as_it_does_alone(name: str, spec: str) -> None:
    model, (together, alone) = tuned(name, spec), batch()
    for settings in ({}, {"use_cache": False}, {"num_beams": 3}, {"cache_implementation": "static"}):
        torch.testing.assert_close(
            continued(model, together, **settings),
            continued(model, alone, **settings),
            atol=1e-5,
            rtol=1e-5,
        )


@pytest.mark.parametrize("name", WINDOWED)
def test_it_continues_so_from_a_prompt_in_pieces(name: str) -> None:
    model, (together, alone) = tuned(name), batch()
    found = continued(model, together, prefill_chunk_size=8)
    torch.testing.assert_close(found, continued(model, alone), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["mpt", "bloom", "mamba"])
def test_it_continues_so_where_no_positions_can_be_told(name: str) -> None:
    model, (together, alone) = tuned(name), batch(name)
    torch.testing.assert_close(continued(model, together), continued(model, alone), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        beside, own = model(**together).logits[:1, PADDED:], model(**alone).logits
    torch.testing.assert_close(beside, own, atol=1e-5, rtol=1e-5)


def test_it_continues_so_where_layers_have_a_state() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    mamba = {"mamba_d_state": 4, "mamba_dt_rank": 4, "num_experts": 2, "use_mamba_kernels": False}
    kinds = {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1}
    model = compile(
        JambaForCausalLM(JambaConfig(vocab_size=99, **sizes, **mamba, **kinds)), "prompt length=3"
    )
    together, alone = batch()
    for settings in ({}, {"cache_implementation": "static"}):
        found = continued(model.eval(), together, **settings)
        torch.testing.assert_close(found, continued(model, alone), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [DynamicCache, StaticCache])
@pytest.mark.parametrize("name", ["llama", "gpt2", *WINDOWED])
def test_states_and_attention_are_those_of_its_own_tokens(name: str, kind: type[Any]) -> None:
    model, (together, alone) = tuned(name, attention="eager"), batch(name)
    shown = {"output_hidden_states": True, "output_attentions": True}

    def steps(inputs: dict[str, Tensor]) -> list[Any]:
        mask = inputs["attention_mask"]
        call = inputs | {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
        room = {"max_cache_len": mask.shape[1]} if kind is StaticCache else {}
        cache, given = kind(config=model.config, **room), []
        for start, end in ((0, mask.shape[1] - 1), (mask.shape[1] - 1, mask.shape[1])):
            part = {key: call[key][:, start:end] for key in ("input_ids", "position_ids")}
            part["attention_mask"] = mask[:, :end]
            given.append(model(**part, past_key_values=cache, **shown))
        return given

    with torch.no_grad():
        for beside, own in zip(steps(together), steps(alone), strict=True):
            count = own.logits.shape[1]
            for a, b in zip(beside.hidden_states, own.hidden_states, strict=True):
                torch.testing.assert_close(a[:1, -count:], b, atol=1e-5, rtol=1e-5)
            for a, b in zip(beside.attentions, own.attentions, strict=True):
                first = PADDED if a.shape[-1] > b.shape[-1] else 0  # a window holds no more
                keys = slice(first, first + b.shape[-1])
                torch.testing.assert_close(a[:1, :, -count:, keys], b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", WINDOWED)
def test_attention_maps_are_as_long_as_the_base_s(name: str) -> None:
    inputs, _ = batch()
    base, model = zoo.build(name, "eager"), tuned(name, attention="eager")
    settings = {"max_new_tokens": 4, "eos_token_id": None, "output_attentions": True, "do_sample": False}
    with torch.no_grad():
        maps = [
            each.generate(**inputs, **settings, return_dict_in_generate=True).attentions
            for each in (base, model)
        ]
    shapes = [[[layer.shape for layer in step] for step in each] for each in maps]
    assert shapes[0] == shapes[1]


def test_it_is_one_graph_for_every_length() -> None:
    model, calls = tuned("gemma3"), []
    for length in (11, 9, 10):
        inputs = zoo.inputs("gemma3", 2, length)
        calls.append(inputs | {"position_ids": (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)})
    torch._dynamo.reset()
    whole = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    with torch.no_grad():
        expected = [model(**call, use_cache=False).logits for call in calls]
        whole(**calls[0], use_cache=False)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for call, logits in zip(calls, expected, strict=True):
                torch.testing.assert_close(whole(**call, use_cache=False).logits, logits)


def test_by_positions_alone_it_is_the_same_in_front_of_the_padding() -> None:
    model, (together, _) = tuned("llama"), batch("llama")
    by_place = torch.arange(together["input_ids"].shape[1]).expand(2, -1)
    with torch.no_grad():
        in_front, behind = model(**together).logits, model(**together, position_ids=by_place).logits
    torch.testing.assert_close(behind[0, PADDED:], in_front[0, PADDED:])
    torch.testing.assert_close(behind[1], in_front[1])


def test_rows_of_a_cache_are_picked_with_their_padding() -> None:
    model, (together, _) = tuned("gemma3"), batch()
    position = (together["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    rows = torch.tensor([1, 0, 0])

    def last(pick: Any, rows: Tensor) -> Tensor:
        cache = DynamicCache(config=model.config)
        call = {key: value[:, :-1] for key, value in (together | {"position_ids": position}).items()}
        model(**call, past_key_values=cache)
        pick(cache)
        step = {"input_ids": together["input_ids"][rows, -1:], "position_ids": position[rows, -1:]}
        return model(**step, attention_mask=together["attention_mask"][rows], past_key_values=cache).logits

    with torch.no_grad():
        expected = last(lambda cache: None, torch.arange(2))
        torch.testing.assert_close(last(lambda cache: cache.reorder_cache(rows), rows), expected[rows])
        torch.testing.assert_close(
            last(lambda cache: cache.batch_select_indices(rows[:2]), rows[:2]), expected[rows[:2]]
        )
        doubled = torch.arange(2).repeat_interleave(2)
        torch.testing.assert_close(
            last(lambda cache: cache.batch_repeat_interleave(2), doubled), expected[doubled]
        )
        with pytest.raises(
            LoweringError,
            match=r"a cache holds the prompts of 2 rows, some behind padding, and is used for 3",
        ):
            last(lambda cache: None, rows)


def test_a_cache_that_the_forward_made_knows_of_padding() -> None:
    model, (together, _) = tuned("gemma3"), batch()
    position = (together["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    call = together | {"position_ids": position}
    with torch.no_grad():
        expected = model(**call).logits[:, -1:]
        cache = model(**{key: value[:, :-1] for key, value in call.items()}).past_key_values
        step = {key: call[key][:, -1:] for key in ("input_ids", "position_ids")}
        found = model(**step, attention_mask=call["attention_mask"], past_key_values=cache).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_padding_is_what_comes_before_everything_that_is_seen() -> None:
    keys = torch.tensor([[0, 0, 1, 0, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]])
    expected = torch.tensor([2, 0, 0])
    seen = keys.bool()[:, None, None, :] & torch.ones(5, 5, dtype=torch.bool).tril()
    hidden = torch.zeros(3, 1, 5, 5).masked_fill(~seen, torch.finfo(torch.float32).min)
    for mask in (keys, keys.bool(), keys.float(), seen, hidden, {"full": None, "sliding": seen}):
        assert torch.equal(padding_of(mask), expected)
    assert padding_of(None) is None


def test_values_are_arranged_by_row_and_taken_back() -> None:
    own = torch.tensor([[10, 11, 12], [20, 21, 22]])
    longer, padding = torch.cat([torch.tensor([[1, 2]] * 2), own], 1), torch.tensor([2, 0])
    arranged = behind_padding(longer, padding, 2, 1)
    assert arranged.tolist() == [[10, 11, 1, 2, 12], [1, 2, 20, 21, 22]]
    assert torch.equal(without_prompts(arranged, padding, 2, 1), own)
    of_axes = behind_padding(longer.expand(3, -1, -1), padding, 2, -1, rows=-2)  # as of height and width
    assert torch.equal(of_axes, arranged.expand(3, -1, -1))
    assert torch.equal(behind_padding(longer[:1], padding, 2, 1)[1], longer[0])
