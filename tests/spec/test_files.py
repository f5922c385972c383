"""YAML and JSON files: equal specs, and one line with its place for each problem."""

import time
from pathlib import Path

import pytest

from peft_compiler.errors import SpecError
from peft_compiler.methods import METHODS, LoRA
from peft_compiler.site import SHORT_NAMES
from peft_compiler.spec import Rule, Spec, Where
from peft_compiler.spec.read import read_spec
from peft_compiler.spec.terms import one_of

GOOD = """\
# A comment.
version: 1
rules:
  - use: lora
    where: {role: "q, v", layers: last 4}
    expect: 8
  - use: {adapter: {width: 64}}
    where:
      role: ffn
      not: {layers: [0, 1]}
  - use: {kind: deep_prompts, length: 5}
    where: {attention: any}
train: head
"""

JSON = """\
{\t"rules": [
\t\t{"use": "lora", "where": {"role": ["q", "v"], "layers": "last 4"}, "expect": 8},
\t\t{"use": {"kind": "adapter", "width": 64}, "where": {"role": "ffn", "not": {"layers": "0, 1"}}},
\t\t{"use": {"deep_prompts": {"length": 5}}, "where": {"attention": "any"}}],
\t"train": ["head"]}
"""


def written(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problems_of(path: Path) -> list[str]:
    with pytest.raises(SpecError) as caught:
        read_spec(path)
    return [problem.replace(str(path), path.name) for problem in caught.value.problems]


def test_yaml_json_dict_and_python_give_the_same_spec(tmp_path: Path) -> None:
    spec = read_spec(written(tmp_path, "spec.yaml", GOOD))
    assert spec == read_spec(str(written(tmp_path, "spec.json", JSON)))
    assert spec == read_spec(spec) == read_spec(spec.model_dump())
    assert spec.rules[1] == Rule.model_validate(
        {"use": {"kind": "adapter", "width": 64}, "where": Where(role="ffn", not_=Where(layers="0, 1"))}
    )
    assert Spec.model_validate_json(spec.model_dump_json(exclude_defaults=True)) == spec


def test_each_real_problem_is_one_line(tmp_path: Path) -> None:
    text = """\
rules:
  - use: {kind: lorra, r: 8}
  - use: {lora: {rnk: 8, r: 0}}
    wher: {}
  - use: adapter
    where: {role: [q, qq], layers: 5-2, not: {}, towr: x, tower: visoin}
    expect: -1
  - where: {role: q}
  - use: 3
  - lora
train: [q]
zzz: 1
"""
    settings = one_of(name for name in LoRA.model_fields if name != "kind")
    kinds = one_of(method.model_fields["kind"].default for method in METHODS)
    short = one_of(SHORT_NAMES)
    assert problems_of(written(tmp_path, "a.yaml", text)) == [
        f"a.yaml:2:10: unknown method 'lorra', expected {kinds}; did you mean 'lora'?",
        f"a.yaml:3:18: unknown key 'rnk', expected {settings}; did you mean 'r'?",
        "a.yaml:3:29: 'r' is 0, expected greater than 0",
        "a.yaml:4:5: unknown key 'wher', expected use, where or expect; did you mean 'where'?",
        f"a.yaml:6:23: found role 'qq', expected {short}, or a full name; did you mean 'q'?",
        "a.yaml:6:36: found layers '5-2', which end before they begin; write '2-5'",
        "a.yaml:6:46: found an empty selector, which selects everything; expected at least one criterion",
        "a.yaml:6:50: unknown key 'towr', expected role, layers, tower, attention, path, type, and, or or not"
        "; did you mean 'tower'?",
        "a.yaml:6:66: 'tower[0]' is 'visoin', expected 'encoder', 'decoder', 'text', 'vision' or 'audio';"
        " did you mean 'vision'?",
        "a.yaml:7:13: 'expect' is -1, expected greater than 0",
        "a.yaml:8:5: key 'use' is missing; add it",
        "a.yaml:9:10: 'use' is no method; write its name, or `{kind: lora}` and its settings",
        "a.yaml:10:5: 'rules[5]' is 'lora', expected keys and values",
        "a.yaml:11:9: found 'q', which no copy can replace; expected embedding, head or norm, or a path",
        "a.yaml:12:1: unknown key 'zzz', expected version, rules, train or dtype",
    ]


UNREADABLE = {
    "anchors.yaml": (
        "a: &a [x]\nb: *a\n",
        [
            "anchors.yaml:1:4: found anchor '&a'; a spec has none, remove it",
            "anchors.yaml:2:4: found alias '*a'; write out what it stands for",
        ],
    ),
    "tag.yaml": (
        "rules: !!python/object/apply:os.getcwd []\n",
        [
            "tag.yaml:1:8: found tag 'tag:yaml.org,2002:python/object/apply:os.getcwd'; a spec has none,"
            " remove it"
        ],
    ),
    "twice.yaml": (
        "rules: [use: lora]\nrules: [use: adapter]\n",
        ["twice.yaml:2:1: found key 'rules' twice, first in line 1; keep one"],
    ),
    "open.yaml": (
        "rules: [\n",
        [
            "open.yaml:2:1: not YAML: while parsing a flow node, expected the node content,"
            " but found '<stream end>'"
        ],
    ),
    "two.yaml": (
        "rules: [use: lora]\n---\na: b\n",
        ["two.yaml:2:1: not YAML: expected a single document in the stream, but found another document"],
    ),
    "deep.yaml": ("[" * 10_000, ["deep.yaml:1:25: nested more than 24 levels deep"]),
    "deep.json": ("[" * 100_000, ["deep.json:1:1: nested more than 24 levels deep"]),
    "comma.json": (
        '{"rules": [{"use": "lora",}]}',
        ["comma.json:1:27: not JSON: expecting property name enclosed in double quotes"],
    ),
    "twice.json": (
        '{"rules": [],\n "rules": []}',
        [
            "twice.json:1:1: found neither rules nor parts to train; a spec needs one,"
            " such as `LoRA on q,v` or `rules: [{use: lora}]`",
            "twice.json:2:2: found key 'rules' twice, first in line 1; keep one",
        ],
    ),
    "empty.yaml": ("", ["empty.yaml:1:1: the file is empty; write a rule such as `rules: [{use: lora}]`"]),
    "control.yaml": ("rules:\x00", ["control.yaml:1:1: not YAML: special characters are not allowed"]),
    "list.yaml": ("- lora\n", ["list.yaml:1:1: the spec is a list, expected keys and values"]),
    "nan.yaml": (
        "rules:\n  - use: {lora: {alpha: .nan}}\n",
        ["nan.yaml:2:25: found '.nan', expected a finite number"],
    ),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read(name: str, tmp_path: Path) -> None:
    text, expected = UNREADABLE[name]
    assert problems_of(written(tmp_path, name, text)) == expected


def test_an_alias_bomb_is_refused_at_once(tmp_path: Path) -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]" for i in range(1, 20)]
    start = time.process_time()
    assert "a.yaml:1:5: found anchor '&a0'; a spec has none, remove it" in problems_of(
        written(tmp_path, "a.yaml", "\n".join(rows))
    )
    assert time.process_time() - start < 2


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.yaml"
    with path.open("wb") as file:
        file.truncate(100_000_000)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: pytest.fail("the file was read"))
    with pytest.raises(SpecError) as caught:
        read_spec(path)
    assert str(caught.value) == f"{path} has 100,000,000 bytes, expected at most 1,000,000; is it a spec?"


def test_what_is_no_spec_file(tmp_path: Path) -> None:
    for source, expected in {
        str(
            tmp_path / "none.yaml"
        ): f"found nothing at {tmp_path / 'none.yaml'}, expected a spec file; check the path",
        written(tmp_path, "a.txt", "LoRA"): f"{tmp_path / 'a.txt'} is no spec file: "
        "expected a name that ends in .yaml, .yml, .json",
        written(
            tmp_path, "latin.yaml", "# é".encode("latin-1")
        ): f"{tmp_path / 'latin.yaml'} is not UTF-8 text: found a bad byte at offset 2",
        3: "found a value of type int, expected a sentence, a path, a dict or a Spec",
    }.items():
        with pytest.raises(SpecError) as caught:
            read_spec(source)  # pyright: ignore[reportArgumentType]
        assert str(caught.value) == expected


def test_a_dict_tells_the_way_to_a_problem() -> None:
    with pytest.raises(SpecError) as caught:
        read_spec({"rules": [{"use": {"lora": {"r": "many"}}, "where": {"role": ["q", "vlaue"]}}]})
    assert str(caught.value).startswith("the dict is not a valid spec\n")
    assert [problem.split(",")[0] for problem in caught.value.problems] == [
        "rules[0].use.lora.r: 'r' is 'many'",
        "rules[0].where.role[1]: found role 'vlaue'",
    ]
