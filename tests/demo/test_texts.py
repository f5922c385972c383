"""The texts are split without overlap, the same way each time, and near-neutral ones are left out."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from peft_compiler.demo import texts
from peft_compiler.demo.texts import Example, abstracts, movie_sentences, rated

RATINGS = [
    ("3.5", "a joy"),
    ("-2", "dull, and long"),
    ("0.4", "it is a movie"),
    ("-0.5", "meh"),
    ("0.5", "nice"),
]
TWEETS = [("1.5", "yay"), ("-0.2", "so so")]


@pytest.fixture
def sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package laid out like the real one, with five sentences and two tweets."""
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as resources:
        for source, rows in {"movieReviewSnippets": RATINGS, "tweets": TWEETS}.items():
            table = "\r\n".join(f"{number}\t{rating}\t{text}" for number, (rating, text) in enumerate(rows))
            entry = tarfile.TarInfo(f"hutto_ICWSM_2014/{source}_GroundTruth.txt")
            entry.size = len(table)
            resources.addfile(entry, io.BytesIO(table.encode()))
    with zipfile.ZipFile(tmp_path / "package.zip", "w") as package:
        package.writestr("vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz", inner.getvalue())
    monkeypatch.setattr(texts, "fetch", lambda archive: tmp_path / "package.zip")


@pytest.mark.usefixtures("sentences")
def test_sentences_are_split_without_overlap() -> None:
    train, test = movie_sentences(3, 1, seed=0)
    assert (len(train), len(test)) == (3, 1)
    assert {*train, *test} == {
        Example("a joy", 1),
        Example("dull, and long", 0),
        Example("meh", 0),
        Example("nice", 1),
    }


@pytest.mark.usefixtures("sentences")
def test_each_source_has_texts_of_its_own() -> None:
    assert rated("tweets", seed=0) == [Example("yay", 1)]
    assert len(rated("movieReviewSnippets", seed=0)) == 4


@pytest.mark.usefixtures("sentences")
def test_the_seed_decides_the_split() -> None:
    assert movie_sentences(3, 1, seed=0) == movie_sentences(3, 1, seed=0)
    assert len({str(movie_sentences(3, 1, seed)) for seed in range(8)}) > 1


def test_abstracts_are_their_sentences_in_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [{"sentences": {"abstract": ["One .", "Two ."]}}, {"sentences": {"abstract": ["Three ."]}}]
    with zipfile.ZipFile(tmp_path / "package.zip", "w") as package:
        package.writestr("aclsum/dataset/val.jsonl", "\n".join(map(json.dumps, lines)))
    monkeypatch.setattr(texts, "fetch", lambda archive: tmp_path / "package.zip")
    assert abstracts("val") == ["One . Two .", "Three ."]
