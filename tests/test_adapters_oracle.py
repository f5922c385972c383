"""The oracle against the adapters library: that it would notice, and, if asked for, that it agrees."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from benchmarks.adapters_oracle import models
from benchmarks.adapters_oracle.cases import each
from benchmarks.adapters_oracle.compare import Difference
from benchmarks.adapters_oracle.different import DIFFERENT
from benchmarks.adapters_oracle.equal import EQUAL
from benchmarks.adapters_oracle.report import RESULTS, as_stated, results, sentence_of
from benchmarks.adapters_oracle.theirs import slots_of

LABELLED = list(each())


def test_every_comparison_comes_out_as_its_case_says(request: pytest.FixtureRequest) -> None:
    folder: Path | None = request.config.getoption("--adapters-oracle")
    if folder is None:
        pytest.skip(
            "takes the adapters library, in an environment of its own: run `make adapters-oracle`, "
            "or pass --adapters-oracle FOLDER"
        )
    others = {label: found for label, case, _, found in results(folder) if not as_stated(case, found)}
    assert not others


def test_the_committed_results_are_those_of_the_committed_cases() -> None:
    page = RESULTS.read_text(encoding="utf-8")
    due = [(case, model) for _, case, model in LABELLED if case.because is None]
    assert f"\n{len(LABELLED)} comparisons; of the {len(due)} that are to be equal, {len(due)} are.\n" in page
    for _, case, model in LABELLED:
        assert (case.change or case.because or sentence_of(case)) in page
        assert f"| {model} |" in page


@pytest.mark.parametrize(
    ("difference", "equal"),
    [
        (Difference(outputs=1e-6, gradients=1e-5, moved=1.0), True),
        (Difference(outputs=2e-5, gradients=0.0, moved=1.0), False),
        (Difference(outputs=0.0, gradients=2e-4, moved=1.0), False),
        (Difference(outputs=0.0, gradients=0.0, moved=0.0), False),
        (Difference(outputs=float("nan"), gradients=0.0, moved=1.0), False),
        (Difference(error="does not run"), False),
    ],
)
def test_what_counts_as_equal(difference: Difference, equal: bool) -> None:
    case = LABELLED[0][1]
    assert difference.equal is equal
    assert as_stated(case, difference) is equal
    assert as_stated(replace(case, because="a reason"), difference) is not equal


def test_labels_are_different_and_name_files() -> None:
    labels = [label for label, *_ in LABELLED]
    assert len(set(labels)) == len(labels)
    assert all(label.replace("-", "").isalnum() for label in labels)


def test_a_change_follows_the_case_whose_reason_it_removes() -> None:
    changed = [
        (before, after) for before, after in pairwise((*EQUAL, *DIFFERENT)) if after.change is not None
    ]
    assert changed
    for before, after in changed:
        assert before.because is not None
        assert replace(before, because=None, change=after.change) == after


def test_the_librarys_tensors_are_found_by_place() -> None:
    places = {
        "h.0.adapters.oracle.adapter_up.weight": ("h.0", "mh_adapter", None),
        "h.1.adapters.oracle.adapter_up.weight": ("h.1", "mh_adapter", None),
        "h.0.q.loras.oracle.lora_A": ("h.0.q", "selfattn_lora", "q"),
        "h.0.p.pool.prefix_tunings.oracle.self_prefix.control_trans": ("h.0.p", "self_prefix", None),
        "h.0.adapters.first.adapter_up.weight": ("h.0", "output_adapter", None),
        "shared_parameters.oracle.phm_rule": ("", "model", None),
    }
    found = {kind: [dict(slot.names) for slot in slots] for kind, slots in slots_of(places).items()}
    names = list(places)
    assert found == {
        "mh_adapter": [{"adapter_up.weight": names[0]}, {"adapter_up.weight": names[1]}],
        "selfattn_lora q": [{"lora_A": names[2]}],
        "pool self_prefix": [{"control_trans": names[3]}],
        "output_adapter": [{"adapters.first.adapter_up.weight": names[4]}],
        "model": [{"phm_rule": names[5]}],
    }


@pytest.mark.parametrize("name", ["BERT, masked", "T5, gated", "ViT"])
def test_a_base_is_the_same_wherever_it_is_loaded(name: str, tmp_path: Path) -> None:
    model = models.build(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        models.stir(model)
    model.save_pretrained(tmp_path)
    batch = models.inputs(name)
    with torch.no_grad():
        before, after = (m(**batch).logits for m in (model, models.load(name, tmp_path)))
    # Not bit for bit: what a matrix product rounds to depends on where in memory its operands lie.
    torch.testing.assert_close(models.seen(after, batch), models.seen(before, batch), atol=1e-5, rtol=1e-5)
