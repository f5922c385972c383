"""The public names and signatures: changing one is a decision, not an accident."""

import inspect
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType

import peft_compiler


def test_public_names_and_signatures(golden: Callable[[str, str], None]) -> None:
    lines = [described(name, getattr(peft_compiler, name)) for name in sorted(peft_compiler.__all__)]
    golden("api.txt", "\n".join(lines))


def described(name: str, value: object) -> str:
    if inspect.isclass(value):
        return f"class {name}({', '.join(base.__name__ for base in value.__bases__)})"
    assert callable(value)
    return f"{name}{inspect.signature(value)}"


def test_every_public_name_loads_and_none_is_a_module() -> None:
    assert not [
        name for name in peft_compiler.__all__ if isinstance(getattr(peft_compiler, name), ModuleType)
    ]


def test_a_public_name_wins_over_a_module_imported_earlier() -> None:
    code = "import peft_compiler.plan; import peft_compiler as pc; print(type(pc.plan).__name__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "function\n"


def test_every_public_name_is_declared_for_type_checkers() -> None:
    declared = inspect.getsource(peft_compiler).split("if TYPE_CHECKING:")[1].split("_HOME_OF")[0]
    assert sorted(line.split(" as ")[1] for line in declared.split("\n") if " as " in line) == sorted(
        peft_compiler.__all__
    )


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(peft_compiler, "compil")


def test_dir_lists_the_public_names() -> None:
    assert set(peft_compiler.__all__) <= set(dir(peft_compiler))
