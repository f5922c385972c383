"""Every method says what it is: its paper and the section, its formula, and the shapes of what it holds."""

import inspect
import re
import sys
from collections.abc import Iterator

import pytest
from torch import nn

from peft_compiler.methods import METHODS, Method
from peft_compiler.testing.clauses import Case
from peft_compiler.testing.places import Example
from tests.methods.cases import CASES

PACKAGE = "peft_compiler.methods"
AUTHORS_AND_YEAR = re.compile(r"[A-Z][\w-]+( et al\.| and [A-Z][\w-]+)? (19|20)\d\d\b")
SECTION = re.compile(r"\b[Ss]ections? (\d|that )|\bmethod section\b|\bappendix [A-Z]")
FORMULA = re.compile(r"[\w)\]}²ᵀ]+ [+·⊙⊗=−] [\w(\[{Σ|]+")
SHAPE = re.compile(r"\([^()]+, [^()]*(\([^()]*\))?[^()]*\)|of shape \(\w*\)")


def about(method: type[Method]) -> str:
    """The docstring of a method's file, its lines joined."""
    return " ".join((sys.modules[method.__module__].__doc__ or "").split())


def owned(module: nn.Module) -> Iterator[tuple[type[nn.Module], str]]:
    """Yields each name under which a module of ours holds tensors, or a module of torch's that has some."""
    for part in module.modules():
        if type(part).__module__.startswith(PACKAGE):
            tensors = {*dict(part.named_parameters(recurse=False)), *dict(part.named_buffers(recurse=False))}
            children = (
                name
                for name, child in part.named_children()
                if type(child).__module__.startswith("torch.") and any(True for _ in child.parameters())
            )
            yield from ((type(part), name) for name in (*sorted(tensors), *children))


def sentences_of(owner: type[nn.Module]) -> list[str]:
    """The sentences of a class's docstring, and of those that it extends within the package."""
    ours = [base for base in owner.__mro__ if base.__module__.startswith(PACKAGE)]
    text = " ".join(" ".join((base.__dict__.get("__doc__") or "").split()) for base in ours)
    return re.split(r"(?<=[.:]) ", text)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_a_method_names_its_paper_and_the_section(method: type[Method]) -> None:
    assert method.paper.startswith("arXiv:")
    assert method.paper.removeprefix("arXiv:") in about(method)
    assert AUTHORS_AND_YEAR.search(about(method))
    assert SECTION.search(about(method))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_a_method_gives_its_formula_and_shapes(method: type[Method]) -> None:
    assert FORMULA.search(about(method))
    assert SHAPE.search(about(method))


def test_every_method_is_built_here() -> None:
    assert {type(case.values[0]) for case in CASES} == set(METHODS)


@pytest.mark.parametrize(("method", "example"), CASES)
def test_an_inserted_module_gives_the_shape_of_all_that_it_holds(method: Method, example: Example) -> None:
    silent = {
        f"{owner.__name__}.{name}"
        for owner, name in owned(Case(method, example).build())
        if not any(f"`{name}`" in sentence and SHAPE.search(sentence) for sentence in sentences_of(owner))
    }
    assert not silent, f"no shape is given for {', '.join(sorted(silent))}"


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_every_class_and_public_function_beside_a_method_has_a_docstring(method: type[Method]) -> None:
    file = sys.modules[method.__module__]
    own = [
        thing
        for name, thing in inspect.getmembers(file)
        if (inspect.isclass(thing) or inspect.isfunction(thing)) and thing.__module__ == file.__name__
        if not name.startswith("_")
    ]
    assert method in own
    assert not [thing.__name__ for thing in own if not thing.__doc__]
