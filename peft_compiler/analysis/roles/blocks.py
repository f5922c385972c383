"""Which modules are the repeated blocks of a model, and how they are counted."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from peft_compiler.analysis.module_graph import ModuleFact, parent

_NEVER_CALLED = frozenset({"ModuleList", "ModuleDict"})


@dataclass(frozen=True, slots=True)
class Block:
    """A repeated part of the model with at least one residual add.

    Attributes:
        path: The module.
        stack: The module that holds it and its like.
        position: Which of them it is, from 0.
        is_whole: Whether it does all that a block does, the residual adds too. Blocks that lie
            spread over several lists, one of attentions and one of feed-forward layers, are not.
    """

    path: str
    stack: str
    position: int
    is_whole: bool = True


@dataclass(frozen=True, slots=True)
class Blocks:
    """Every block of a model, by path."""

    by_path: Mapping[str, Block]

    def holding(self, path: str) -> Block | None:
        """Returns the innermost block that holds the module at `path`, or is it; None outside the blocks."""
        while path and path not in self.by_path:
            path = parent(path)
        return self.by_path.get(path)


def find_blocks(modules: Mapping[str, ModuleFact], busy: Iterable[str]) -> Blocks:
    """Returns the innermost repeated module around each of the `busy` ones.

    Args:
        modules: Every module by path.
        busy: The modules in whose forward a residual add stands; without any, those with an attention.
    """
    joins = Counter(busy)
    chains = {path: _upwards(path) for path in joins}
    holders = {member for chain in chains.values() for member in chain}
    found: dict[str, Block] = {}
    for chain in chains.values():
        path = _innermost_block(chain, modules, holders)
        if path is not None:
            found[path] = Block(path, parent(path), _position(path, modules, holders))
    for path, count in joins.items():
        if not any(member in found for member in chains[path]):
            found.update((part.path, part) for part in _spread(path, modules, count))
    return Blocks(found)


def _spread(path: str, modules: Mapping[str, ModuleFact], joins: int) -> Iterator[Block]:
    """Yields the parts of blocks that lie in equally long lists of a module which joins them itself."""
    lists = [child for child in _children(path, modules) if modules[child].is_collection]
    lengths = Counter(len(modules[each].children) for each in lists)
    for each in lists:
        length = len(modules[each].children)
        if 1 < length <= joins and lengths[length] > 1:
            for position, part in enumerate(_children(each, modules)):
                yield Block(part, path, position, is_whole=False)


def _upwards(path: str) -> tuple[str, ...]:
    """Returns `path` and the modules around it, innermost first, without the model itself."""
    chain: list[str] = []
    while path:
        chain.append(path)
        path = parent(path)
    return tuple(chain)


def _innermost_block(
    chain: tuple[str, ...], modules: Mapping[str, ModuleFact], holders: set[str]
) -> str | None:
    # A list of lists has no blocks: its lists have.
    listed = [
        path
        for path in chain
        if modules[parent(path)].is_collection and modules[path].type not in _NEVER_CALLED
    ]
    repeated = [path for path in listed if _is_repeated(parent(path), modules, holders)]
    alone = [path for path in listed if len(modules[parent(path)].children) == 1]
    # Blocks that are attributes of a module: the outermost, for a block may hold two of a kind itself.
    alike = [path for path in reversed(chain) if len(_siblings(path, modules, holders)) > 1]
    return next(iter([*repeated, *alone, *alike]), None)


def _children(path: str, modules: Mapping[str, ModuleFact]) -> list[str]:
    return [f"{path}.{name}" if path else name for name in modules[path].children]


def _is_repeated(stack: str, modules: Mapping[str, ModuleFact], holders: set[str]) -> bool:
    types = Counter(modules[child].type for child in _children(stack, modules) if child in holders)
    return any(count > 1 for count in types.values())


def _siblings(path: str, modules: Mapping[str, ModuleFact], holders: set[str]) -> list[str]:
    same = (child for child in _children(parent(path), modules) if modules[child].type == modules[path].type)
    return [child for child in same if child in holders]


def _position(path: str, modules: Mapping[str, ModuleFact], holders: set[str]) -> int:
    if modules[parent(path)].is_collection:
        return _children(parent(path), modules).index(path)
    return _siblings(path, modules, holders).index(path)
