"""Which positions are tokens, and that the first and last of them are found wherever padding stands."""

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Graph

import peft_compiler as pc
from peft_compiler.lowering.masks import mask_given
from peft_compiler.methods._positions import tokens_in
from tests import zoo
from tests.test_compiling import main_output, stir

TOKENS = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
LEAST = torch.finfo(torch.float32).min


def pairs(before: int = 0, behind: int = 0, causal: bool = True) -> Tensor:
    """A mask (3, 1, 5, keys) with keys of a cache before the tokens, and empty room behind."""
    keys = nn.functional.pad(nn.functional.pad(TOKENS, (before, 0), value=1), (0, behind)).bool()
    seen = keys[:, None, None].expand(-1, 1, 5, -1)
    return seen & torch.ones(5, keys.shape[1], dtype=torch.bool).tril(before) if causal else seen


def added(seen: Tensor, hides: float = LEAST) -> Tensor:
    """The same, as what is added to scores."""
    return torch.zeros(seen.shape).masked_fill(~seen, hides)


@pytest.mark.parametrize(
    "mask",
    [
        TOKENS,
        TOKENS.bool(),
        TOKENS.float(),
        nn.functional.pad(TOKENS, (3, 0), value=1),
        added(TOKENS.bool(), -torch.inf),
        added(TOKENS.bool(), -10000.0),
        pairs(),
        pairs(causal=False),
        pairs(causal=False)[:, :, :1],
        pairs(before=3),
        pairs(behind=4),
        pairs(before=2, behind=4),
        pairs() & torch.ones(5, 5, dtype=torch.bool).triu(-1),
        added(pairs()),
        added(pairs(behind=4), -10000.0),
        added(pairs()) - torch.arange(5.0).flip(0),
        added(pairs()).expand(-1, 4, -1, -1),
    ],
)
def test_tokens_are_told_from_padding(mask: Tensor) -> None:
    assert torch.equal(tokens_in(mask, 5).int(), TOKENS.int())


def test_without_padding_every_position_is_a_token() -> None:
    for mask in (torch.ones(3, 5), torch.zeros(3, 1, 5, 5), torch.zeros(3, 5), pairs()[2:]):
        assert tokens_in(mask, 5).all()


@pytest.mark.parametrize(
    ("name", "attention", "sides"),
    [
        ("gpt2", "sdpa", (3, 0)),
        ("gpt2", "eager", (3, 0)),
        ("llama", "sdpa", (3, 0)),
        ("llama", "sdpa", (2, 1)),
        ("bert", "sdpa", (0, 3)),
        ("bert", "eager", (0, 3)),
        ("t5", "sdpa", (0, 3)),
    ],
)
@pytest.mark.parametrize("spec", ["loreft r=2 first=2 last=1", "direft r=2 last=2; prompt length=3"])
def test_padding_on_either_side_changes_nothing(
    name: str, attention: str, sides: tuple[int, int], spec: str
) -> None:
    inputs = zoo.inputs(name)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    tuned = pc.compile(zoo.build(name, attention), spec, inputs)
    stir(tuned)
    longer = inputs | {
        each: nn.functional.pad(inputs[each], sides) for each in ("input_ids", "attention_mask")
    }
    if name in ("gpt2", "llama"):
        longer["position_ids"] = (longer["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        alone, padded = main_output(tuned(**inputs)), main_output(tuned(**longer))
    if padded.shape != alone.shape:
        padded = padded[:, sides[0] : padded.shape[1] - sides[1]]
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-5)


def test_masks_of_torch_s_own_blocks_say_what_is_hidden() -> None:
    tuned = pc.compile(zoo.build("torch_encoder"), "loreft r=2 first=2 last=1", zoo.inputs("torch_encoder"))
    stir(tuned)
    x = torch.randn(2, 5, zoo.HIDDEN)
    hidden = torch.tensor([False] * 5 + [True] * 3).expand(2, -1)
    with torch.no_grad():
        padded = tuned(nn.functional.pad(x, (0, 0, 0, 3)), src_key_padding_mask=hidden)
        torch.testing.assert_close(padded[:, :5], tuned(x), atol=1e-5, rtol=1e-5)


def test_a_mask_that_is_no_tensor_is_refused() -> None:
    graph = Graph()
    graph.placeholder("attention_mask")
    with pytest.raises(
        pc.LoweringError, match="'attention_mask', which is no tensor here; take the attention"
    ):
        mask_given(graph)
