"""What keeps the rules of one spec from fitting a model together."""

from collections import defaultdict
from collections.abc import Iterator

from peft_compiler.methods import Wiring
from peft_compiler.planning.binding import Binding, counted, some
from peft_compiler.site import Role, Site


def clashes(bindings: tuple[Binding, ...]) -> Iterator[str]:
    """Yields each clash between two rules."""
    yield from _same_method_twice(bindings)
    yield from _inside_a_copy(bindings)
    yield from _no_room_together(bindings)


def _same_method_twice(bindings: tuple[Binding, ...]) -> Iterator[str]:
    users: dict[tuple[str, Site], list[str]] = defaultdict(list)
    for binding in bindings:
        for site in binding.sites:
            users[binding.rule.use.kind, site].append(binding.label)
    shared: dict[tuple[str, ...], list[Site]] = defaultdict(list)
    for (_, site), labels in users.items():
        if len(labels) > 1:
            shared[tuple(labels)].append(site)
    for labels, sites in shared.items():
        places = counted(len(sites), "place")
        yield (
            f"{' and '.join(labels)} share {places}, where one method can stand only once\n"
            f"  {some(tuple(sites))}\n"
            f"  keep them apart by `where`, or drop one"
        )


def _inside_a_copy(bindings: tuple[Binding, ...]) -> Iterator[str]:
    """Yields each rule that changes what another one replaces as a whole."""
    for copying in bindings:
        method = copying.rule.use
        copied = {site.path for site in copying.sites if method.wiring(site) is Wiring.REPLACE}
        for other in bindings:
            if other.rule.use.kind == method.kind:
                continue
            inside = tuple(site for site in other.sites if not copied.isdisjoint(_around(site.path)))
            if inside:
                yield (
                    f"{other.label} changes what {copying.label} trains whole\n"
                    f"  {some(inside)}\n"
                    f"  keep them apart by `where`, or drop one"
                )


def _no_room_together(bindings: tuple[Binding, ...]) -> Iterator[str]:
    """Yields each input of which several rules take so many positions that no token has one."""
    takers: dict[Site, dict[str, int]] = defaultdict(dict)
    for binding in bindings:
        for site in binding.sites:
            taken = binding.rule.use.at(site).positions_taken()
            if site.role is Role.INPUT and taken:
                takers[site][binding.label] = taken
    for site, taken in takers.items():
        together = sum(taken.values())
        if site.positions is not None and max(taken.values()) < site.positions <= together:
            yield (
                f"{' and '.join(taken)} take {together} positions together, which leaves no room for tokens\n"
                f"  '{site.path}' ({site.role}) has {site.positions} positions\n"
                f"  take less"
            )


def _around(path: str) -> list[str]:
    """Returns the path of a module and of every module around it."""
    names = path.split(".")
    return [".".join(names[:length]) for length in range(len(names) + 1)]
