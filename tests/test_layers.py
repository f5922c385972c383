"""Imports point one way: a stage may import only the stages before it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "peft_compiler"
ORDER = (
    "errors",
    "quantised",
    "spread",
    "digests",
    "role",
    "rows",
    "letters",
    "site",
    "frames",
    "copies",
    "methods",
    "registering",
    "spec",
    "plan",
    "analysis",
    "planning",
    "lowering",
    "saving",
    "dequantising",
    "merging",
    "templates",
    "optimising",
    "allocating",
    "compiling",
    "activations",
    "estimating",
    "interchange",
    "verifying",
    "testing",
    "demo",
    "cli",
)


def layer_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_layers(file: Path) -> Iterator[str]:
    """Every layer that a file imports, also within functions and for types only."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("peft_compiler."))


FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if file.parent != PACKAGE or file.stem != "__init__"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_one_way(file: Path) -> None:
    layer = layer_of(file)
    assert layer in ORDER, f"{layer} is new: say where it stands in ORDER"
    forward = {target for target in imported_layers(file) if ORDER.index(target) > ORDER.index(layer)}
    assert not forward, f"{layer} imports {', '.join(sorted(forward))}, which come after it"


def test_every_layer_exists() -> None:
    assert {layer_of(file) for file in FILES} == set(ORDER)


@pytest.mark.parametrize("module", ["peft_compiler", "peft_compiler.errors", "peft_compiler.cli"])
def test_torch_is_not_imported_before_it_is_needed(module: str) -> None:
    heavy = {"torch", "transformers", "networkx", "lark", "numpy"}
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
