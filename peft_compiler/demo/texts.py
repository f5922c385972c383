"""The texts that the demo learns from."""

import io
import json
import random
import tarfile
import zipfile
from dataclasses import dataclass

from peft_compiler.demo.archives import ABSTRACTS, SENTENCES, fetch

NEUTRAL = 0.5
"""Sentences rated nearer to zero than this (of -4 to 4) are left out: people disagree on their sign."""


@dataclass(frozen=True, slots=True)
class Example:
    """A sentence and whether people find that it praises (1) or not (0)."""

    text: str
    label: int


def movie_sentences(train: int, test: int, seed: int) -> tuple[list[Example], list[Example]]:
    """Returns disjoint examples to train on and to test on, drawn at random without near-neutral ones."""
    examples = rated("movieReviewSnippets", seed)
    return examples[:train], examples[train : train + test]


def rated(source: str, seed: int) -> list[Example]:
    """Returns a source's texts in an order drawn at random, without near-neutral ones.

    Args:
        source: `"movieReviewSnippets"`, `"amazonReviewSnippets"`, `"nytEditorialSnippets"` or `"tweets"`.
        seed: Decides the order.
    """
    with (
        zipfile.ZipFile(fetch(SENTENCES)) as package,
        package.open("vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz") as inner,
        tarfile.open(fileobj=io.BytesIO(inner.read())) as resources,
    ):
        file = resources.extractfile(f"hutto_ICWSM_2014/{source}_GroundTruth.txt")
        assert file is not None
        lines = file.read().decode().splitlines()
    rows = [(float(rating), text.strip()) for _, rating, text in (line.split("\t", 2) for line in lines)]
    examples = [Example(text, int(rating > 0)) for rating, text in rows if abs(rating) >= NEUTRAL]
    random.Random(seed).shuffle(examples)
    return examples


def abstracts(split: str) -> list[str]:
    """Returns the abstracts of a split: `"train"` (100), `"val"` (50) or `"test"` (100)."""
    with zipfile.ZipFile(fetch(ABSTRACTS)) as package:
        lines = package.read(f"aclsum/dataset/{split}.jsonl").decode().splitlines()
    return [" ".join(json.loads(line)["sentences"]["abstract"]) for line in lines]
