"""Tokens enter a tower where its embeddings first flow on towards the blocks."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peft_compiler.analysis.find_sites import find_sites
from peft_compiler.analysis.roles.blocks import Block, Blocks
from peft_compiler.site import Input, Role, Site, Tower
from tests import zoo

EXPECTED: dict[str, list[tuple[str, Tower, str, int | None, str, tuple[str, ...]]]] = {
    "gpt2": [("transformer", Tower.TEXT, "wte.weight", 128, "transformer", ())],
    "llama": [("model", Tower.TEXT, "embed_tokens.weight", None, "model", ())],
    "bert": [("bert", Tower.TEXT, "embeddings.word_embeddings.weight", 128, "bert.encoder", ())],
    "roberta": [("roberta", Tower.TEXT, "embeddings.word_embeddings.weight", 128, "roberta.encoder", ())],
    "t5": [
        ("encoder", Tower.ENCODER, "embed_tokens.weight", None, "encoder", ("decoder",)),
        ("decoder", Tower.DECODER, "embed_tokens.weight", None, "decoder", ()),
    ],
    "whisper": [("model.decoder", Tower.DECODER, "embed_tokens.weight", None, "model.decoder", ())],
    "mamba": [("backbone", Tower.TEXT, "embeddings.weight", None, "backbone", ())],
    "handmade": [("", Tower.TEXT, "tokens.weight", None, "", ())],
    "vit": [],
    "torch_encoder": [],
}


def inputs_of(model: nn.Module, example: Any = None) -> list[Site]:
    return [site for site in find_sites(model, example) if site.role is Role.INPUT]


@pytest.mark.parametrize("name", EXPECTED)
def test_every_tower_that_looks_tokens_up_has_one(name: str) -> None:
    found = []
    for site in inputs_of(zoo.build(name), zoo.inputs(name) if name == "torch_encoder" else None):
        place = site.place
        assert isinstance(place, Input)
        found.append((site.path, site.tower, place.table, site.positions, place.states, place.readers))
    assert found == EXPECTED[name]


def test_its_widths_are_those_of_what_is_looked_up() -> None:
    """ELECTRA's embeddings are narrower than its blocks."""
    (site,) = inputs_of(zoo.build("electra"))
    assert (site.width_in, site.width_out, site.layer) == (zoo.VOCABULARY, 16, None)


def test_the_lookup_of_a_module_that_does_more_has_an_anchor() -> None:
    class Inline(nn.Module):
        """Looks tokens up in its own forward."""

        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(zoo.VOCABULARY, zoo.HIDDEN))
            self.blocks = nn.ModuleList(zoo.HandmadeBlock() for _ in range(2))

        def forward(self, words: Tensor) -> Tensor:
            x = nn.functional.embedding(words, self.table)
            for block in self.blocks:
                x = block(x)
            return x

    (site,) = inputs_of(Inline(), {"words": torch.randint(0, 9, (2, 5))})
    assert isinstance(site.place, Input)
    assert site.place.anchor is not None
    assert (site.place.table, site.place.argument) == ("table", "words")


def test_a_table_of_distances_is_none_of_positions() -> None:
    class Distances(nn.Module):
        """As in T5: a bias for each pair of positions, by their distance."""

        def __init__(self) -> None:
            super().__init__()
            self.words, self.bias = nn.Embedding(zoo.VOCABULARY, zoo.HIDDEN), nn.Embedding(7, zoo.HIDDEN)
            self.blocks = nn.ModuleList(zoo.HandmadeBlock() for _ in range(2))

        def forward(self, words: Tensor) -> Tensor:
            places = torch.arange(words.shape[1])
            apart = self.bias((places - places[:, None]).clamp(-3, 3) + 3).mean(1)
            x = self.words(words) + apart
            for block in self.blocks:
                x = block(x)
            return x

    (site,) = inputs_of(Distances(), {"words": torch.randint(0, 9, (2, 5))})
    assert site.positions is None


def test_the_search_grows_with_the_layers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks without tokens before them are all looked at, yet what lies before them only once."""
    asked, holding = [0], Blocks.holding

    def counted(blocks: Blocks, path: str) -> Block | None:
        asked[0] += 1
        return holding(blocks, path)

    monkeypatch.setattr(Blocks, "holding", counted)
    counts = []
    for layers in (4, 8, 12):
        asked[0] = 0
        model = nn.Sequential(*(zoo.HandmadeBlock() for _ in range(layers)))
        assert not inputs_of(model, {"input": torch.randn(2, 5, zoo.HIDDEN)})
        counts.append(asked[0])
    assert counts[2] - counts[1] == counts[1] - counts[0]
