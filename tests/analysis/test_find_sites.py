"""Every model of the zoo has the sites that a reader of its source would name."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from peft_compiler.analysis.find_sites import find_sites
from peft_compiler.site import Core, Edge, Projection, Role, Site, Tower
from tests.zoo import ALL, HEADS, HIDDEN, LAYERS, PLAIN, SEQ2SEQ, build, inputs

ATTENTION = (Role.QUERY, Role.KEY, Role.VALUE, Role.ATTENTION_OUTPUT, Role.ATTENTION_CORE, Role.ATTENTION)
GATED = {"llama", "qwen3", "gemma3", "mistral", "mixtral", "phi3"}
WITHOUT_SDPA = {"bloom", "gptj", "mpt", "mamba", "deberta_v2", *PLAIN}
EMBEDDINGS = {"t5": 2, "bart": 2, "vit": 0, "torch_encoder": 0}
HEAD_COUNTS = {"bert": 2, "roberta": 2, "deberta_v2": 2, "distilbert": 2, "electra": 2, "torch_encoder": 0}
NORMS = {
    "gpt2": 5, "llama": 5, "qwen3": 9, "gemma3": 13, "mistral": 5, "mixtral": 5, "phi3": 5,
    "falcon_multi_query": 3, "falcon_alibi": 5, "falcon_new": 5, "bloom": 6, "gpt_neox": 5, "gptj": 3,
    "opt": 5, "mpt": 5, "mamba": 3, "bert": 5, "roberta": 5, "deberta_v2": 5, "distilbert": 5,
    "electra": 5, "vit": 5, "t5": 12, "bart": 12, "whisper": 12, "torch_encoder": 4, "handmade": 2,
}  # fmt: skip
"""Counted in the source of each model."""

ROWS = {
    "gpt2": ("[0:32] of 96", "[32:64] of 96", "[64:96] of 96"),
    "mpt": ("[0:32] of 96", "[32:64] of 96", "[64:96] of 96"),
    "handmade": ("[0:32] of 96", "[32:64] of 96", "[64:96] of 96"),
    "torch_encoder": ("[0:32] of 96", "[32:64] of 96", "[64:96] of 96"),
    "phi3": ("[0:32] of 64", "[32:48] of 64", "[48:64] of 64"),
    "falcon_multi_query": ("[0:32] of 48", "[32:40] of 48", "[40:48] of 48"),
    "falcon_new": ("2 × [0:16] every 32 of 64", "2 × [16:24] every 32 of 64", "2 × [24:32] every 32 of 64"),
    "falcon_alibi": ("4 × [0:8] every 24 of 96", "4 × [8:16] every 24 of 96", "4 × [16:24] every 24 of 96"),
    "bloom": ("4 × [0:8] every 24 of 96", "4 × [8:16] every 24 of 96", "4 × [16:24] every 24 of 96"),
    "gpt_neox": ("4 × [0:8] every 24 of 96", "4 × [8:16] every 24 of 96", "4 × [16:24] every 24 of 96"),
}
"""Rows of query, key and value, where they share a projection; all other models have none."""

KEY_HEADS = {"llama": 2, "qwen3": 2, "gemma3": 2, "mistral": 2, "mixtral": 2, "phi3": 2} | {
    "falcon_multi_query": 1,
    "falcon_new": 2,
}


def variants() -> list[tuple[str, str | None]]:
    """Every model with each attention implementation that it has."""
    return [(name, None) for name in PLAIN] + [
        (name, attention)
        for name in ALL
        if name not in PLAIN
        for attention in ("eager", *(() if name in WITHOUT_SDPA else ("sdpa",)))
    ]


def of(sites: tuple[Site, ...], role: Role) -> list[Site]:
    return [site for site in sites if site.role is role]


def expected_counts(name: str) -> Counter[tuple[Role, bool]]:
    stacks = 2 if name in SEQ2SEQ else 1
    counts: Counter[tuple[Role, bool]] = Counter({(Role.BLOCK, False): stacks * LAYERS})
    counts[Role.EMBEDDING, False] = EMBEDDINGS.get(name, 1)
    counts[Role.INPUT, False] = EMBEDDINGS.get(name, 1)
    counts[Role.HEAD, False] = HEAD_COUNTS.get(name, 1)
    counts[Role.NORM, False] = NORMS[name]
    if name == "mamba":
        counts.update(dict.fromkeys([(Role.MIXER, False), (Role.MIXER_INPUT, False)], LAYERS))
        counts[Role.MIXER_OUTPUT, False] = LAYERS
        return +counts
    feed_forward = [Role.UP, Role.DOWN, Role.FEED_FORWARD, *([Role.GATE] if name in GATED else [])]
    counts.update(dict.fromkeys([(role, False) for role in (*ATTENTION, *feed_forward)], stacks * LAYERS))
    if name in SEQ2SEQ:
        counts.update(dict.fromkeys([(role, True) for role in ATTENTION], LAYERS))
    if name == "mixtral":
        counts[Role.ROUTER, False] = LAYERS
    return +counts


@pytest.mark.parametrize(("name", "attention"), variants())
def test_roles_are_complete(name: str, attention: str | None) -> None:
    sites = find_sites(build(name, attention))
    assert Counter((site.role, site.cross) for site in sites) == expected_counts(name)
    assert len({site.name for site in sites}) == len(sites)
    _assert_layers(sites)
    _assert_rows(name, sites)
    _assert_cores(name, sites)
    _assert_edges(sites)


def _assert_layers(sites: tuple[Site, ...]) -> None:
    outside = (Role.EMBEDDING, Role.INPUT, Role.HEAD)
    inside = [site for site in sites if site.role not in (*outside, Role.NORM)]
    assert {site.layer for site in inside} == set(range(LAYERS))
    assert all(site.layer is None for site in sites if site.role in outside)
    assert all(site.evidence and site.module_type for site in sites)


def _assert_rows(name: str, sites: tuple[Site, ...]) -> None:
    for role, rows in zip((Role.QUERY, Role.KEY, Role.VALUE), ROWS.get(name, (None,) * 3), strict=True):
        assert {site.rows and str(site.rows) for site in of(sites, role)} <= {rows}
    for site in sites:
        if site.rows is not None:
            assert site.width_out == len(site.rows)
            assert site.rows.total in site.shape


def _assert_cores(name: str, sites: tuple[Site, ...]) -> None:
    for site in of(sites, Role.ATTENTION_CORE):
        core = site.place
        assert isinstance(core, Core)
        assert (core.heads, core.key_heads) == (HEADS, KEY_HEADS.get(name, HEADS))
        assert (core.key_width, core.value_width) == (HIDDEN // HEADS, HIDDEN // HEADS)
        is_learned = name == "deberta_v2" or (name == "t5" and not site.cross)
        assert core.learned_bias == is_learned


def _assert_edges(sites: tuple[Site, ...]) -> None:
    for site in sites:
        if isinstance(site.place, Edge):
            assert site.place.operand in (0, 1)
            assert site.width_in == site.width_out == HIDDEN


@pytest.mark.parametrize("name", ALL)
def test_other_inputs_give_the_same_sites(name: str) -> None:
    model = build(name)
    derived, given = find_sites(model), find_sites(model, inputs(name))
    assert [replace(site, evidence=()) for site in derived] == [replace(site, evidence=()) for site in given]


@pytest.mark.parametrize("name", ["gpt2", "mixtral", "whisper"])
def test_sites_need_no_weights(name: str) -> None:
    with torch.device("meta"):
        bare = build(name)
    assert find_sites(bare) == find_sites(build(name))


@pytest.mark.parametrize("name", ["gpt2", "t5", "torch_encoder", "mixtral", "mamba"])
def test_sites_with_their_evidence(name: str, golden: Callable[[str, str], None]) -> None:
    lines = [
        f"{site.name}  {site.width_in} → {site.width_out}"
        + "".join(f"  {fact}" for fact in (site.rows, getattr(site.place, "form", None)) if fact)
        + "".join(f"\n    {line}" for line in site.evidence)
        for site in find_sites(build(name, None if name in WITHOUT_SDPA else "sdpa"))
        if site.layer != 1
    ]
    golden(f"analysis/{name}_sites.txt", "\n".join(lines))


@pytest.mark.parametrize(
    ("name", "towers"),
    [
        ("llama", {Tower.TEXT}),
        ("bert", {Tower.TEXT}),
        ("vit", {Tower.VISION}),
        ("whisper", {Tower.ENCODER, Tower.DECODER}),
        ("t5", {Tower.ENCODER, Tower.DECODER}),
        ("torch_encoder", {None}),
    ],
)
def test_towers(name: str, towers: set[Tower | None]) -> None:
    sites = find_sites(build(name))
    assert {site.tower for site in sites if site.layer is not None} == towers
    assert {site.tower for site in sites if site.cross} <= {Tower.DECODER}


def test_a_projection_that_is_a_whole_module_has_no_anchor() -> None:
    sites = {site.name: site for site in find_sites(build("gpt2"))}
    query = sites["transformer.h.0.attn.c_attn:attention.query"]
    assert query.place == Projection("weight", "transposed", query.rows, None, "bias")
    assert query.shape == (HIDDEN, 3 * HIDDEN)
    assert sites["lm_head:head"].place == Projection("weight", "linear", None, None, None)


def test_a_scaled_table_is_no_module_of_its_own() -> None:
    # Adding to the module's output would add behind its scale, and not be the same as adding to the table.
    (embedding,) = of(find_sites(build("gemma3")), Role.EMBEDDING)
    assert isinstance(embedding.place, Projection)
    assert embedding.place.anchor is not None
    (plain,) = of(find_sites(build("llama")), Role.EMBEDDING)
    assert isinstance(plain.place, Projection)
    assert plain.place.anchor is None


def test_experts_are_one_site_for_all() -> None:
    sites = [site for site in find_sites(build("mixtral")) if site.experts]
    assert {(site.role, site.experts, site.place.form) for site in sites} == {
        (Role.GATE, 4, "experts"),
        (Role.UP, 4, "experts"),
        (Role.DOWN, 4, "experts"),
    }
    up = next(site for site in sites if site.role is Role.UP)
    assert str(up.rows) == "[64:128] of 128"


def test_parallel_branches_each_join_where_they_are_first_added() -> None:
    for name in ("gpt_neox", "gptj", "falcon_new"):
        edges = [site for site in find_sites(build(name)) if isinstance(site.place, Edge) and site.layer == 0]
        assert {edge.role for edge in edges} == {Role.ATTENTION, Role.FEED_FORWARD}
        assert len({edge.place.anchor for edge in edges}) == 1
        assert {edge.place.operand for edge in edges} == {0, 1}


def test_slices_of_a_parameter_are_rows_of_it() -> None:
    layer = nn.TransformerDecoderLayer(HIDDEN, HEADS, 64, batch_first=True)
    sites = find_sites(layer, {"tgt": torch.ones(2, 5, HIDDEN), "memory": torch.ones(2, 3, HIDDEN)})
    cross = {site.role: str(site.rows) for site in sites if site.cross and site.rows}
    assert cross == {Role.QUERY: "[0:32] of 96", Role.KEY: "[32:64] of 96", Role.VALUE: "[64:96] of 96"}
    assert {site.path for site in sites if site.cross and site.rows} == {"multihead_attn"}


class Shared(nn.Module):
    """One feed-forward layer that runs three times, and another one in the same module."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.other = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            x = x + self.layer(x)
        return x + self.other(x)


def test_a_module_that_runs_several_times_is_one_site() -> None:
    sites = find_sites(Shared(), torch.ones(2, 8))
    assert [site.name for site in of(sites, Role.UP)] == [
        "layer.0:feed_forward.up",
        "other.0:feed_forward.up",
    ]


def test_like_places_in_one_module_are_numbered() -> None:
    sites = find_sites(Shared(), torch.ones(2, 8))
    names = [site.name for site in of(sites, Role.FEED_FORWARD)]
    assert len(set(names)) == len(names) == 4  # three rounds of the loop, and the other one
    assert names[:2] == [":feed_forward", ":feed_forward#1"]


def test_a_model_without_attention_has_heads_only() -> None:
    sites = find_sites(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    assert [site.name for site in sites] == ["2:head"]
