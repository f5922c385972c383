"""A package that declares a method as its entry point makes it known to a process that never imports it."""

import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).parents[1]
TUTORIAL = ROOT / "docs" / "own_method.md"
USE = """
    import sys
    import peft_compiler as pc
    from peft_compiler.testing import small_decoder

    model, inputs = small_decoder()
    tuned = pc.compile(model, "representation edits of the last layer; LoRA on q", inputs)
    assert "red" in sys.modules, "the entry point was not loaded"
    pc.save(tuned, "adapter")
    print(pc.verify(pc.load(model, "adapter", inputs)))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the tutorial's method was installed as a package of its own."""
    source, site = tmp_path_factory.mktemp("red"), tmp_path_factory.mktemp("site")
    shown = TUTORIAL.read_text()
    (code,) = re.findall(r"```python\n# red\.py\n(.*?)```", shown, re.DOTALL)
    # The entry point alone is to make it known.
    (source / "red.py").write_text(code.replace("@pc.register\n", ""))
    table, entry = re.findall(r"`(\[project\.entry-points[^`]*\]|red = [^`]*)`", shown)
    (source / "pyproject.toml").write_text(
        "[build-system]\n"
        'requires = ["setuptools"]\n'
        'build-backend = "setuptools.build_meta"\n'
        "[project]\n"
        'name = "red-method"\n'
        'version = "1"\n'
        f"{table}\n{entry}\n"
        "[tool.setuptools]\n"
        'py-modules = ["red"]\n'
    )
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    run([*install, "--no-index", "--target", str(site), str(source)], source)
    return site


def run(command: list[str], folder: Path, *paths: Path) -> str:
    """What a command prints, with some folders on Python's path."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_sentence_names_it_and_every_promise_is_kept(site: Path, tmp_path: Path) -> None:
    report = run([sys.executable, "-c", dedent(USE)], tmp_path, site, ROOT)
    assert "every rule is bound: 3 insertions of 2 rules" in report
    assert "BROKEN" not in report


def test_the_command_line_knows_it(site: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from peft_compiler.cli import main; main()", "check", "red after FFN"]
    assert run(command, tmp_path, site, ROOT).startswith("representation edit after ffn\n")


def test_without_the_package_the_sentence_names_nothing(tmp_path: Path) -> None:
    code = "from peft_compiler.spec.read import read_spec; read_spec('representation edit')"
    with pytest.raises(AssertionError, match="found 'representation', expected a method"):
        run([sys.executable, "-c", code], tmp_path, ROOT)
