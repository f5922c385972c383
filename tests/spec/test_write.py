"""Specs as text: what is written reads back to an equal spec."""

import random
from pathlib import Path
from typing import Any

import pytest

from peft_compiler.methods import METHODS
from peft_compiler.site import Tower
from peft_compiler.spec import Spec
from peft_compiler.spec.read import read_spec
from peft_compiler.spec.terms import TERMS
from peft_compiler.spec.write import to_sentence, to_yaml

LAYERS = ["0", "0-5", "last 4", "last 1", "first 2", "every 2nd", "every 3rd"]
PATHS = [
    "model.layers.*.mlp",
    "**.q",
    r"/h\.\d+\\n\"/",
    'a"b;c#d',
    r"/a\b(x|y)$/",
    "a\\",
    "ü😀",
    "\x85\ta\nb",
]
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "lora": [{}, {"r": 3}, {"alpha": 1e-05, "dropout": 0.25}, {"r": 64, "alpha": 16}, {"init": "pissa"}],
    "dora": [{}, {"r": 3, "alpha": 0.5}],
    "vera": [{}, {"r": 3, "d_initial": 0.5}],
    "randlora": [{}, {"r": 3, "seed": 7}],
    "loha": [{}, {"r": 3, "alpha": 0.5}],
    "lokr": [{}, {"factor": 4, "decompose_both": True}],
    "oft": [{}, {"block_size": 8, "shared": True}],
    "boft": [{}, {"block_size": 8, "factors": 2}],
    "hra": [{}, {"r": 4}],
    "fourierft": [{}, {"n": 100, "alpha": 0.5, "init": "zero"}],
    "miss": [{}, {"r": 3}],
    "adalora": [{}, {"r": 4, "target_r": 2}],
    "adapter": [{}, {"width": 7, "activation": "gelu"}],
    "adapter_fusion": [{}, {"adapters": ["one", "two", "three"], "width": 7}],
    "bitfit": [{}, {"add": True}],
    "compacter": [{}, {"width": 8, "n": 2, "rank": 3}],
    "gated_adapter": [{}, {"width": 7}],
    "gated_lora": [{}, {"r": 3, "alpha": 0.5, "gate": "sequence"}],
    "gated_prefix": [{}, {"length": 3, "width": 7}],
    "ia3": [{}],
    "loreft": [{}, {"r": 3, "first": 7, "last": 7}],
    "direft": [{}, {"r": 3, "first": 7}],
    "invertible_adapter": [{}, {"width": 7}],
    "trainable_tokens": [{"tokens": [5, 9]}],
    "parallel_adapter": [{}, {"width": 7, "scale": 4}, {"scale": "learned"}],
    "pfeiffer_adapter": [{}, {"width": 7}],
    "ssf": [{}],
    "deep_prompts": [{}, {"length": 3}],
    "prompt": [{}, {"length": 3}],
    "prefix": [{}, {"length": 3}],
    "p_tuning": [{}, {"length": 3}],
    "llama_adapter": [{}, {"length": 3}],
    "trained_copy": [{}],
    "x_lora": [{}, {"adapters": ["one", "two", "three"], "depth": 2, "top_k": 2, "softmax": "top_k"}],
}


def random_where(draw: random.Random, depth: int = 0) -> dict[str, Any]:
    choices: dict[str, Any] = {
        "role": draw.sample(list(TERMS), draw.randint(1, 3)),
        "layers": draw.sample(LAYERS, draw.randint(1, 3)),
        "tower": draw.sample(list(Tower), draw.randint(1, 2)),
        "attention": draw.choice(["self", "cross", "any"]),
        "path": draw.choice(PATHS),
        "type": draw.choice(["Llama*", "Bert[AS]*"]),
    }
    where = {name: value for name, value in choices.items() if draw.random() < 0.35}
    if depth < 2:
        for key in ("and", "or"):
            if draw.random() < 0.2:
                where[key] = [
                    random_where(draw, depth + 1) or {"role": "q"} for _ in range(draw.randint(2, 3))
                ]
        if draw.random() < 0.2:
            where["not"] = random_where(draw, depth + 1) or {"role": "q"}
    return where


def random_spec(seed: int) -> Spec:
    draw = random.Random(seed)
    rules = []
    for _ in range(draw.randint(1, 3)):
        kind = draw.choice(list(SETTINGS))
        use = {"kind": kind, **draw.choice(SETTINGS[kind])}
        rules.append({"use": use, "where": random_where(draw), "expect": draw.choice([None, 3])})
    train = draw.sample(["head", "norm", "classifier.*", "/a b/"], draw.randint(0, 2))
    dtype = draw.choice([None, "float32", "bfloat16"])
    return Spec.model_validate({"rules": rules, "train": train, "dtype": dtype})


@pytest.mark.parametrize("seed", range(120))
def test_reading_back_gives_an_equal_spec(seed: int, tmp_path: Path) -> None:
    spec = random_spec(seed)
    assert read_spec(to_sentence(spec)) == spec
    path = tmp_path / "spec.yaml"
    path.write_text(to_yaml(spec), encoding="utf-8")
    assert read_spec(path) == spec
    assert read_spec(spec.model_dump(mode="json", exclude_defaults=True)) == spec
    assert hash(read_spec(to_sentence(spec))) == hash(spec)


def test_the_settings_tried_are_of_every_method() -> None:
    assert set(SETTINGS) == {method.model_fields["kind"].default for method in METHODS}


def test_sentences_read_well() -> None:
    spec = read_spec(
        "LoRA rank 16 on query, value of the last 4 layers; adapters after FFN in encoder; train head"
    )
    assert to_sentence(spec) == (
        "lora r=16 on q,v of the last 4 layers; adapter after ffn in encoder; train head"
    )


def test_files_read_well() -> None:
    spec = read_spec("LoRA rank 16 on q, v of layers 0-5; adapters; dtype=BFloat16; train head, norm")
    assert to_yaml(spec) == (
        "version: 1\n"
        "rules:\n"
        "  - use: {lora: {r: 16}}\n"
        "    where: {role: [q, v], layers: 0-5}\n"
        "  - use: adapter\n"
        "train: [head, norm]\n"
        "dtype: bfloat16\n"
    )


def test_a_spec_prints_only_what_was_said() -> None:
    assert repr(read_spec("lora on q expect 3").rules[0].where) == "Where(role=('q',))"
