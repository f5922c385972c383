"""Which layers a rule means: `0-5`, `3, 7`, `last 4`, `every 2nd`, counted from 0 within a tower."""

import re

INDEX = re.compile(r"\d{1,9}", re.ASCII)
RANGE = re.compile(r"(\d{1,9})\s*(?:-|\.\.|to)\s*(\d{1,9})", re.ASCII)
END = re.compile(r"(first|last)(?:\s+(\d{1,9}))?(?:\s+layers?)?", re.ASCII)
STEP = re.compile(r"every\s+(?:(\d{1,9})(?:st|nd|rd|th)|(other))(?:\s+layer)?", re.ASCII)
EXPECTED = "expected layers such as `0-5`, `3, 7`, `first 2`, `last 4`, `every 2nd` or `all`"


def canonical_layers(value: str | int | list[str | int] | tuple[str | int, ...] | None) -> str | None:
    """Returns the one spelling of a choice of layers; None for all of them.

    Args:
        value: An index, text, or a list of both.

    Raises:
        ValueError: If it is no choice of layers.

    >>> canonical_layers([0, "2 to 5", "Last 4 layers", "every other"])
    '0, 2-5, last 4, every 2nd'
    >>> canonical_layers("all") is None
    True
    """
    if value is None:
        return None
    whole = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    items = [_canonical_item(item.strip().lower()) for item in whole.split(",")]
    return None if "all" in items else ", ".join(dict.fromkeys(items))


def _canonical_item(item: str) -> str:
    if item in ("all", "every layer", "all layers"):
        return "all"
    if INDEX.fullmatch(item):
        return str(int(item))
    if found := RANGE.fullmatch(item):
        first, last = int(found[1]), int(found[2])
        if first > last:
            raise ValueError(f"found layers '{item}', which end before they begin; write '{last}-{first}'")
        return f"{first}-{last}" if first < last else str(first)
    if found := END.fullmatch(item):
        if found[2] is not None and int(found[2]) == 0:
            raise ValueError(f"found layers '{item}', which are none; {EXPECTED}")
        return f"{found[1]} {int(found[2] or 1)}"
    if found := STEP.fullmatch(item):
        step = int(found[1] or 2)
        if step == 0:
            raise ValueError(f"found layers '{item}', which are none; {EXPECTED}")
        return f"every {ordinal(step)}" if step > 1 else "all"
    raise ValueError(f"found layers '{item}'; {EXPECTED}")


def ordinal(number: int) -> str:
    """Returns the number as a place in a row.

    >>> [ordinal(n) for n in (1, 2, 3, 4, 11, 22)]
    ['1st', '2nd', '3rd', '4th', '11th', '22nd']
    """
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def chosen_layers(text: str, depth: int) -> frozenset[int]:
    """Returns the layers that canonical `text` chooses in a tower of `depth` layers.

    `every 2nd` are the 2nd, the 4th and so on: indices 1, 3, ...

    >>> sorted(chosen_layers("0, last 2", depth=12)), sorted(chosen_layers("every 2nd", depth=6))
    ([0, 10, 11], [1, 3, 5])
    """
    chosen: set[int] = set()
    for item in text.split(", "):
        if found := RANGE.fullmatch(item):
            chosen.update(range(int(found[1]), min(int(found[2]) + 1, depth)))
        elif found := END.fullmatch(item):
            count = min(int(found[2]), depth)
            chosen.update(range(count) if found[1] == "first" else range(depth - count, depth))
        elif found := STEP.fullmatch(item):
            step = int(found[1])
            chosen.update(range(step - 1, depth, step))
        else:
            chosen.add(int(item))
    return frozenset(layer for layer in chosen if layer < depth)


def depth_needed(text: str) -> int:
    """Returns the least depth of a tower that has every layer which `text` names.

    >>> depth_needed("0-5"), depth_needed("last 4, 1"), depth_needed("every 2nd")
    (6, 4, 2)
    """
    numbers = [list(map(int, re.findall(r"\d+", item))) for item in text.split(", ")]
    counted = [item.startswith(("first", "last", "every")) for item in text.split(", ")]
    return max(max(found) + (0 if is_count else 1) for found, is_count in zip(numbers, counted, strict=True))
