"""An adapter is loaded onto its own base only, and never unpickled."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import peft_compiler as pc
from peft_compiler.errors import InterchangeError
from peft_compiler.saving.save import inserted_state
from tests import zoo
from tests.interchange.trained import logits, train

QUERY = "transformer.h.0.attn.c_attn.inserted.query_lora"


def test_what_is_loaded_is_what_was_saved(base: nn.Module, tuned: nn.Module, saved: Path) -> None:
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    loaded = pc.load(base, saved, zoo.inputs("gpt2"))
    assert torch.equal(logits(loaded), logits(tuned))
    assert not torch.equal(logits(loaded), logits(base))
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    assert all(parameter.requires_grad for parameter in base.parameters())
    assert {name for name, p in loaded.named_parameters() if p.requires_grad} == set(inserted_state(tuned))


def refused(base: nn.Module, folder: Path) -> InterchangeError:
    with pytest.raises(InterchangeError) as caught:
        pc.load(base, folder, zoo.inputs("gpt2"))
    return caught.value


def spoil_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "adapter.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter.safetensors")


def test_all_wrong_tensors_are_named_at_once(base: nn.Module, folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{QUERY}.up"] = tensors[f"{QUERY}.up"].T.contiguous()
        tensors[f"{QUERY}.down"] = tensors[f"{QUERY}.down"].half()
        tensors["stranger"] = tensors.pop(f"{QUERY.replace('query', 'value')}.down")

    spoil_tensors(folder, change)
    assert refused(base, folder).problems == (
        f"{QUERY}.down is F16, the base needs torch.float32",
        f"{QUERY}.up has the shape (2, 32), the base needs (32, 2)",
        f"{QUERY.replace('query', 'value')}.down is missing from adapter.safetensors",
        "stranger is in adapter.safetensors, but the spec inserts nothing of that name",
    )


def test_another_base_is_refused_saying_what_differs(saved: Path) -> None:
    other = zoo.build("gpt2")
    other.config.layer_norm_epsilon = 0.1
    assert refused(other, saved).problems == (
        "the base's config has layer_norm_epsilon=0.1, the adapter's base had 1e-05",
    )
    (problem, *_) = refused(zoo.build("opt"), saved).problems
    assert problem == "the base is a OPTForCausalLM, the adapter's base was a GPT2LMHeadModel"


def test_one_other_bit_in_the_base_is_refused(saved: Path) -> None:
    other = zoo.build("gpt2")
    with torch.no_grad():
        other.transformer.h[1].mlp.c_fc.weight[0, 0] += 1e-3
    assert refused(other, saved).problems == (
        "the values of the base's weights are not those of the adapter's base",
    )


def test_where_a_model_came_from_does_not_matter(base: nn.Module, saved: Path, tmp_path: Path) -> None:
    base.save_pretrained(tmp_path / "base")
    again = type(base).from_pretrained(tmp_path / "base")
    again.config.problem_type = "regression"
    assert torch.equal(
        logits(pc.load(again, saved, zoo.inputs("gpt2"))), logits(pc.load(base, saved, zoo.inputs("gpt2")))
    )


def test_a_config_may_hold_infinities(tmp_path: Path) -> None:
    base = zoo.build("gpt2")
    base.config.limits = (float("-inf"), 0.0, float("inf"))
    tuned = train(pc.compile(base, "LoRA r=2 on q,v", zoo.inputs("gpt2")), seed=0)
    pc.save(tuned, tmp_path / "adapter")
    again = pc.load(base, tmp_path / "adapter", zoo.inputs("gpt2"))
    assert torch.equal(logits(again), logits(tuned))
    base.config.limits = (float("-inf"), 0.0, 1.0)
    (problem,) = refused(base, tmp_path / "adapter").problems
    assert problem == (
        "the base's config has limits=['-Infinity', 0.0, 1.0], "
        "the adapter's base had ['-Infinity', 0.0, 'Infinity']"
    )


def test_another_plan_is_refused(base: nn.Module, folder: Path) -> None:
    manifest = json.loads((folder / "adapter.json").read_text())
    manifest["plan"] = "0" * 64
    (folder / "adapter.json").write_text(json.dumps(manifest))
    assert refused(base, folder).problems == (
        "the spec now gives another plan for this base than when the adapter was saved",
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the file: invalid json"),
        ("[" * 100_000, "the file: invalid json"),
        ('{"format": 2}', "format: input should be 1"),
        ("{}", "spec: field required"),
        (" " * (16 * 2**20 + 1), "has 16777217 bytes, expected at most 16777216"),
    ],
    ids=["empty", "deep", "another version", "nothing", "too large"],
)
def test_a_bad_manifest_is_one_clear_error(text: str, problem: str, base: nn.Module, folder: Path) -> None:
    (folder / "adapter.json").write_text(text)
    error = refused(base, folder)
    assert str(error).startswith(f"{folder / 'adapter.json'}: ")
    assert error.problems[0].startswith(problem)


def cut_off(content: bytes) -> bytes:
    return content[:-1]


def padded(content: bytes) -> bytes:
    return content + b"\0"


def huge_header(content: bytes) -> bytes:
    return (2**62).to_bytes(8, "little") + content[8:]


def no_json(content: bytes) -> bytes:
    return content[:8] + b"x" + content[9:]


def deep_json(content: bytes) -> bytes:
    return (100_000).to_bytes(8, "little") + b"[" * 100_000


def nothing(content: bytes) -> bytes:
    return b""


@pytest.mark.parametrize(
    ("spoil", "summary"),
    [
        (cut_off, "cut off or padded"),
        (padded, "cut off or padded"),
        (huge_header, "not a safetensors file"),
        (no_json, "not a safetensors file"),
        (deep_json, "not a safetensors file"),
        (nothing, "not a safetensors file"),
    ],
)
def test_a_bad_tensor_file_is_one_clear_error(
    spoil: Callable[[bytes], bytes], summary: str, base: nn.Module, folder: Path
) -> None:
    path = folder / "adapter.safetensors"
    path.write_bytes(spoil(path.read_bytes()))
    error = refused(base, folder)
    assert str(error).startswith(f"{path}: {summary}\n")
    assert len(error.problems) == 1


@pytest.mark.parametrize("name", ["adapter.json", "adapter.safetensors"])
def test_a_missing_file_is_named(name: str, base: nn.Module, folder: Path) -> None:
    (folder / name).unlink()
    error = refused(base, folder)
    assert str(error) == (
        f"{folder / name}: not readable\n  No such file or directory: expected what save() wrote"
    )


def test_a_pickle_is_never_opened(base: nn.Module, folder: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (pytest.fail, ("it was unpickled",))

    torch.save(Bomb(), folder / "adapter.safetensors")
    assert "not a safetensors file" in str(refused(base, folder))
