"""A base, a compiled model of it, and the folder it was saved in."""

import shutil
from pathlib import Path

import pytest
from torch import nn

import peft_compiler as pc
from tests import zoo
from tests.interchange.trained import SPEC, train


@pytest.fixture(scope="module")
def base() -> nn.Module:
    return zoo.build("gpt2")


@pytest.fixture(scope="module")
def tuned(base: nn.Module) -> nn.Module:
    return train(pc.compile(base, SPEC, zoo.inputs("gpt2"), seed=3), seed=0)


@pytest.fixture(scope="module")
def saved(tuned: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "adapter"
    pc.save(tuned, folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the saved folder, to be spoilt."""
    return Path(shutil.copytree(saved, tmp_path / "adapter"))
