"""Breaks the code on purpose, in a copy of the tree: `python -m tests.mutation [words of a promise]`.

Each break must make its test fail. The exit status says whether all of them did.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.mutation.mutant import Mutant
from tests.mutation.mutants import MUTANTS

ROOT = Path(__file__).parents[2]
COPIED = ("peft_compiler", "tests", "benchmarks", "specs", "pyproject.toml", "README.md")


def main(words: str) -> int:
    """Runs the mutants whose promise holds `words`; returns how many survived."""
    chosen = [mutant for mutant in MUTANTS if words in mutant.promise]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for name in COPIED:
            copy_into(tree, ROOT / name)
        if not passes(tree, *dict.fromkeys(mutant.test for mutant in chosen)):
            print("the tests fail on the unbroken code: nothing can be said")
            return 1
        survived = [mutant for mutant in chosen if not is_caught(tree, mutant)]
    print(f"{len(chosen) - len(survived)} of {len(chosen)} breaks caught")
    return len(survived)


def copy_into(tree: Path, source: Path) -> None:
    """Copies a file or folder into `tree`, without what was compiled from it."""
    if source.is_dir():
        shutil.copytree(source, tree / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    elif source.exists():
        shutil.copy(source, tree)


def is_caught(tree: Path, mutant: Mutant) -> bool:
    """Breaks the copy, runs the test, mends the copy, and says how it went."""
    file = tree / "peft_compiler" / mutant.file
    sound = file.read_text()
    assert sound.count(mutant.old) == 1, f"{mutant.file} holds {mutant.old!r} {sound.count(mutant.old)} times"
    file.write_text(sound.replace(mutant.old, mutant.new))
    caught = not passes(tree, mutant.test)
    file.write_text(sound)
    print(f"{'caught  ' if caught else 'SURVIVED'}  {mutant.promise} ({mutant.file})", flush=True)
    return caught


def passes(tree: Path, *tests: str) -> bool:
    """Whether the tests pass in the copy."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:doctest"]
    command += ["-o", "addopts=--import-mode=importlib", *(f"tests/{test}" for test in tests)]
    # Without bytecode: a file that is mended within a second of being broken would look unchanged.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(tree)}
    run = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if run.returncode not in (0, 1):
        raise RuntimeError(f"pytest did not run:\n{run.stdout}\n{run.stderr}")
    return run.returncode == 0


if __name__ == "__main__":
    sys.exit(min(main(" ".join(sys.argv[1:])), 1))
