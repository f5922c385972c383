"""Blocks are the innermost repeated modules, whatever they are called."""

import pytest

from peft_compiler.analysis.module_graph import ModuleFact
from peft_compiler.analysis.roles.blocks import Block, find_blocks

COLLECTION = "ModuleList"


def tree(**children: tuple[str, list[str]]) -> dict[str, ModuleFact]:
    """Builds modules from `path_with_double_underscores=(type, names of children)`; the root is `model`."""
    return {
        ("" if name == "model" else name.replace("__", ".")): ModuleFact(
            type=kind, children=tuple(names), is_collection=kind == COLLECTION, parameters=(), size=0
        )
        for name, (kind, names) in children.items()
    }


def test_the_elements_of_a_list() -> None:
    modules = tree(
        model=("Model", ["stack"]),
        stack=(COLLECTION, ["0", "1"]),
        stack__0=("Layer", []),
        stack__1=("Layer", []),
    )
    blocks = find_blocks(modules, ["stack.0", "stack.1"])
    assert blocks.by_path == {
        "stack.0": Block("stack.0", "stack", 0),
        "stack.1": Block("stack.1", "stack", 1),
    }
    assert blocks.holding("stack.1.attention.q") == Block("stack.1", "stack", 1)
    assert blocks.holding("stack") is None


def test_a_list_of_different_parts_is_no_stack() -> None:
    modules = tree(
        model=("Model", ["stack"]),
        stack=(COLLECTION, ["0", "1"]),
        stack__0=("Layer", ["parts"]),
        stack__0__parts=(COLLECTION, ["0", "1"]),
        stack__0__parts__0=("Attention", []),
        stack__0__parts__1=("FeedForward", []),
        stack__1=("Layer", ["parts"]),
        stack__1__parts=(COLLECTION, ["0"]),
        stack__1__parts__0=("Attention", []),
    )
    blocks = find_blocks(modules, ["stack.0.parts.0", "stack.0.parts.1", "stack.1.parts.0"])
    assert list(blocks.by_path) == ["stack.0", "stack.1"]


def test_a_stack_may_hold_two_kinds_of_block() -> None:
    modules = tree(
        model=("Model", ["stack"]),
        stack=(COLLECTION, ["0", "1", "2"]),
        stack__0=("Mixer", []),
        stack__1=("Attention", []),
        stack__2=("Mixer", []),
    )
    blocks = find_blocks(modules, ["stack.0", "stack.1", "stack.2"])
    assert [block.position for block in blocks.by_path.values()] == [0, 1, 2]


def test_a_stack_of_one() -> None:
    modules = tree(
        model=("Model", ["stack"]),
        stack=(COLLECTION, ["0"]),
        stack__0=("Layer", ["output"]),
        stack__0__output=("Output", []),
    )
    assert list(find_blocks(modules, ["stack.0.output"]).by_path) == ["stack.0"]


def test_blocks_that_are_attributes_are_counted_in_order() -> None:
    modules = tree(model=("Model", ["one", "two"]), one=("Layer", []), two=("Layer", []))
    blocks = find_blocks(modules, ["one", "two"])
    assert [(path, block.position) for path, block in blocks.by_path.items()] == [("one", 0), ("two", 1)]


def test_a_module_on_its_own_is_no_block() -> None:
    assert find_blocks(tree(model=("Model", [])), [""]).by_path == {}


def in_lists(*lengths: int) -> dict[str, ModuleFact]:
    positions = {f"list{i}": [str(place) for place in range(length)] for i, length in enumerate(lengths)}
    stacks = {name: (COLLECTION, places) for name, places in positions.items()}
    parts = {f"{name}__{place}": ("Part", []) for name, places in positions.items() for place in places}
    return tree(model=("Model", list(stacks)), **stacks, **parts)


def test_blocks_that_lie_spread_over_lists_are_counted_by_their_place_in_each() -> None:
    blocks = find_blocks(in_lists(2, 2, 3), [""] * 4)
    assert {path: (part.stack, part.position, part.is_whole) for path, part in blocks.by_path.items()} == {
        "list0.0": ("", 0, False),
        "list0.1": ("", 1, False),
        "list1.0": ("", 0, False),
        "list1.1": ("", 1, False),
    }


@pytest.mark.parametrize(("lengths", "joins"), [((2, 3), 4), ((2, 2), 1)])
def test_lists_that_no_blocks_are_spread_over(lengths: tuple[int, ...], joins: int) -> None:
    assert find_blocks(in_lists(*lengths), [""] * joins).by_path == {}
