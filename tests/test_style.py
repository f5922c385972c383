"""What review would otherwise have to watch: lengths, names of architectures, unfinished work."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "peft_compiler"
FILES = sorted(
    [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
)
THIS = Path(__file__)

LONGEST = 300
"""Lines of a file that a reader still takes in as one thing."""

NAMES_OF_ARCHITECTURES = re.compile(
    r"\b(q_proj|k_proj|v_proj|o_proj|qkv_proj|out_proj|c_attn|c_proj|query_key_value|Wqkv|in_proj_weight|up_proj"
    r"|down_proj|gate_proj|fc1|fc2|lm_head|Llama\w*|GPT\w*|Bert\w*|T5\w*)\b"
    r"|\bmodel_type\s*(==|!=|in\b|not in\b)"
)
"""Names that some architecture gives its modules, architectures themselves, and questions which one it is."""

UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK|raise NotImplementedError)\b|@pytest\.mark\.(skip|xfail)")
VAGUE = {"utils", "util", "common", "misc", "base", "manager", "core", "types"}
PLACES_OF_ONE_MACHINE = re.compile(r"""["'\s(](/(home|root|work|tmp|opt|Users)/)""")


def shown(file: Path) -> str:
    return str(file.relative_to(ROOT))


def code_of(file: Path) -> str:
    """The file without comments and docstrings: prose may give examples, code may not know names."""
    without_strings = re.sub(r'"""(.|\n)*?"""', "", file.read_text())
    return re.sub(r"#.*", "", without_strings)


@pytest.mark.parametrize("file", FILES, ids=shown)
def test_a_file_is_short(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= LONGEST


@pytest.mark.parametrize("file", FILES, ids=shown)
def test_a_file_is_finished_and_says_what_it_is(file: Path) -> None:
    if file == THIS:
        return
    text = file.read_text()
    assert not UNFINISHED.findall(text)
    assert not PLACES_OF_ONE_MACHINE.findall(text)
    assert text.startswith('"""'), "no docstring"
    assert file.stem not in VAGUE


@pytest.mark.parametrize("file", [file for file in FILES if file.is_relative_to(PACKAGE)], ids=shown)
def test_code_knows_no_architecture(file: Path) -> None:
    if file.is_relative_to(PACKAGE / "interchange"):
        return  # foreign formats have foreign names
    assert not NAMES_OF_ARCHITECTURES.findall(code_of(file))
