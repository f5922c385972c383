"""A saved folder holds what was learnt and nothing else, and is whole or not there."""

import json
import os
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import peft_compiler as pc
from peft_compiler.errors import InterchangeError, PeftCompilerError
from peft_compiler.plan import is_inserted
from tests import zoo
from tests.interchange.trained import SPEC, logits, train


def test_only_inserted_parameters_are_written(tuned: nn.Module, saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["adapter.json", "adapter.safetensors"]
    written = load_file(saved / "adapter.safetensors")
    assert sum(tensor.numel() for tensor in written.values()) == 4 * 2 * (32 + 32) + 2 * 162 + 2 * 3 * 4 * 16
    assert all(is_inserted(name) for name in written)
    assert set(written) == {name for name, parameter in tuned.named_parameters() if parameter.requires_grad}


def test_the_manifest_says_how_it_came_about(saved: Path) -> None:
    manifest = json.loads((saved / "adapter.json").read_text())
    assert sorted(manifest) == ["base", "format", "plan", "seed", "spec"]
    assert (manifest["format"], manifest["seed"]) == (1, 3)
    assert sorted(manifest["base"]) == ["config", "model", "structure", "weights"]
    assert manifest["base"]["model"] == "GPT2LMHeadModel"


def test_saving_twice_writes_the_same_bytes(tuned: nn.Module, saved: Path, tmp_path: Path) -> None:
    pc.save(tuned, tmp_path / "again")
    for name in ("adapter.json", "adapter.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


STEPS: dict[str, tuple[Any, str]] = {
    # The module, which the function of the same name hides.
    "tensors": (import_module("peft_compiler.saving.save"), "save_file"),
    "manifest": (Path, "write_text"),
    "flush": (os, "fsync"),
    "rename": (Path, "rename"),
}


def failing(target: Any, name: str, at: int) -> Callable[..., Any]:
    """The function of that name, which raises at its call number `at`."""
    original, calls = getattr(target, name), iter(range(100))

    def function(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == at:
            raise OSError(28, "No space left on device")
        return original(*args, **kwargs)

    return function


@pytest.mark.parametrize("existing", [True, False], ids=["over an old folder", "new"])
@pytest.mark.parametrize(
    ("step", "at"),
    [("tensors", 0), ("manifest", 0), ("flush", 0), ("flush", 1), ("flush", 2), ("rename", 0), ("rename", 1)],
)
def test_a_failure_at_any_step_leaves_the_old_folder_or_none(
    step: str,
    at: int,
    existing: bool,
    tuned: nn.Module,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not existing:
        if (step, at) == ("rename", 1):
            pytest.skip("a new folder takes one rename")
        shutil.rmtree(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()} if existing else None
    other = train(pc.compile(zoo.build("gpt2"), SPEC, zoo.inputs("gpt2")), seed=1)
    with monkeypatch.context() as patch:
        target, name = STEPS[step]
        patch.setattr(target, name, failing(target, name, at))
        with pytest.raises(InterchangeError, match="No space left on device"):
            pc.save(other, folder)
    after = {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else None
    assert after == before
    assert [path.name for path in tmp_path.iterdir()] == (["adapter"] if existing else []), (
        "nothing is left over"
    )


def test_an_old_adapter_is_replaced(base: nn.Module, folder: Path) -> None:
    other = train(pc.compile(base, "LoRA r=1 on q", zoo.inputs("gpt2")), seed=1)
    pc.save(other, folder)
    assert torch.equal(logits(pc.load(base, folder, zoo.inputs("gpt2"))), logits(other))


def test_a_folder_that_holds_something_else_is_refused(tuned: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InterchangeError, match=r"it holds other files \(thesis.tex\), which would be lost"):
        pc.save(tuned, tmp_path)
    with pytest.raises(InterchangeError, match="it exists and is no folder"):
        pc.save(tuned, tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_only_compiled_models_are_saved(base: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(PeftCompilerError, match="that was not compiled"):
        pc.save(base, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
