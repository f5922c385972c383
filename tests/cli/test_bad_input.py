"""Bad input ends in exit code 2 and one message on stderr: never a traceback, nothing written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from tests.cli.conftest import Run

SENTENCE = "LoRA r=4 on q,v"


def message(result: Result, name: str) -> str:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith(f"{name}: "), result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr


def config(folder: Path, text: str) -> Path:
    file = folder / "config.json"
    file.write_text(text)
    return file


LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
CONFIGS = {
    "{nonsense": "is not a valid JSON file",
    "[1]": "Should have a `model_type` key",
    '{"model_type": "zzz"}': "model type `zzz`",
    json.dumps(LLAMA | {"hidden_size": "wide"}): "expected int, got str",
    json.dumps(LLAMA | {"hidden_size": -3}): "not a multiple",
    json.dumps(LLAMA | {"vocab_size": -3}): "negative dimension",
    json.dumps(LLAMA | {"architectures": ["LamaForCausalLM"]}): "asks for 'LamaForCausalLM'",
}


@pytest.mark.parametrize("text", CONFIGS)
def test_a_bad_config(text: str, run: Run, tmp_path: Path) -> None:
    file = config(tmp_path, text)
    shown = message(run("plan", file, SENTENCE), "ModelError")
    assert str(file) in shown
    assert CONFIGS[text] in shown


def test_a_config_of_100_megabytes_is_not_read(run: Run, tmp_path: Path) -> None:
    file = config(tmp_path, "")
    with file.open("r+b") as sparse:
        sparse.truncate(100_000_000)
    assert message(run("plan", file, SENTENCE), "ModelError") == (
        f"ModelError: '{file}' is 100,000,000 bytes: a config is at most 1,000,000\n"
    )


@pytest.mark.parametrize(
    "name", ["no-such-folder", "./no-such-folder", "somebody/no-such-model", "a b?c", "x" * 5000]
)
def test_a_model_that_is_nowhere(name: str, run: Run) -> None:
    message(run("plan", name, SENTENCE), "ModelError")


def test_an_empty_folder(run: Run, tmp_path: Path) -> None:
    assert message(run("sites", tmp_path), "ModelError") == (
        f"ModelError: the folder '{tmp_path}' has no config.json\n"
    )


def test_weights_are_asked_of_a_bare_config(run: Run, gpt2: Path, tmp_path: Path) -> None:
    shown = message(run("compile", gpt2 / "config.json", SENTENCE, "-o", tmp_path / "adapter"), "ModelError")
    assert "has no weights" in shown
    assert not (tmp_path / "adapter").exists()


BREAKS: dict[str, Callable[[Path], object]] = {
    "Error while deserializing header": lambda file: file.write_bytes(b"garbage" * 100),
    "no file named model.safetensors": lambda file: file.unlink(),
}


@pytest.mark.parametrize("reason", BREAKS)
def test_broken_weights(reason: str, run: Run, gpt2: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(gpt2, broken)
    BREAKS[reason](broken / "model.safetensors")
    assert reason in message(run("compile", broken, SENTENCE, "-o", tmp_path / "adapter"), "ModelError")


def test_a_config_that_asks_for_more_weights_than_there_are(run: Run, gpt2: Path, tmp_path: Path) -> None:
    grown = tmp_path / "grown"
    shutil.copytree(gpt2, grown)
    settings = json.loads((grown / "config.json").read_text())
    config(grown, json.dumps(settings | {"n_layer": 3}))
    shown = message(run("compile", grown, SENTENCE, "-o", tmp_path / "adapter"), "ModelError")
    assert "lacks 12 weights that its config asks for" in shown


@pytest.mark.parametrize(
    "spec", ["", "LoRA r=0 on q", "lroa on q", "LoRA dropout=1.5 on q", "LoRA on layers -3"]
)
@pytest.mark.parametrize("command", ["check", "plan"])
def test_a_bad_sentence(command: str, spec: str, run: Run, gpt2: Path) -> None:
    message(run(command, *([] if command == "check" else [gpt2]), spec), "SpecError")


def test_a_spec_file_that_is_not_there(run: Run, tmp_path: Path) -> None:
    assert "none.yaml" in message(run("check", tmp_path / "none.yaml"), "SpecError")


def test_a_spec_file_of_100_megabytes(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "large.yaml"
    with file.open("wb") as sparse:
        sparse.truncate(100_000_000)
    message(run("check", file), "SpecError")


def test_a_spec_that_does_not_fit(run: Run, gpt2: Path) -> None:
    message(run("plan", gpt2, "LoRA on q of layers 7-9"), "PlanError")


def test_an_adapter_folder_that_is_none(run: Run, gpt2: Path, tmp_path: Path) -> None:
    message(run("verify", gpt2, tmp_path), "InterchangeError")


def test_an_output_that_cannot_be_written(run: Run, gpt2: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    message(run("compile", gpt2, SENTENCE, "-o", tmp_path / "file" / "adapter"), "InterchangeError")
