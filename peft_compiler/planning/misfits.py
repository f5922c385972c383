"""What keeps one rule from fitting a model."""

import difflib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from peft_compiler.planning.binding import Binding, counted
from peft_compiler.site import SHORT_NAMES, Role, Site, Tower
from peft_compiler.spec import Rule
from peft_compiler.spec.layers import depth_needed
from peft_compiler.spec.paths import is_expression, path_matches
from peft_compiler.spec.select import Depths, depths_of, roles_of, rule_criteria, selected
from peft_compiler.spec.terms import TERMS, did_you_mean, one_of
from peft_compiler.spec.write import quoted, selector_sentence


def misfits(binding: Binding, sites: tuple[Site, ...]) -> Iterator[str]:
    """Yields each reason why a rule does not fit; causes before what only follows from them."""
    depths = depths_of(sites)
    causes = [*_wrong_words(binding, sites), *_missing_layers(binding, depths)]
    if causes:
        yield from causes
    elif not binding.sites:
        yield _nothing_left(binding, sites, depths)
    else:
        yield from _unbound_parts(binding, sites, depths)
        yield from _unmet_expectation(binding)
        yield from _unfit_settings(binding)
        yield from _unknown_words(binding, sites)


def _wrong_words(binding: Binding, sites: tuple[Site, ...]) -> Iterator[str]:
    """Yields each role that the method cannot take, and each role or tower that the model lacks."""
    method, parts = binding.rule.use, list(binding.rule.where.parts)
    present = Counter(site.role for site in sites if site.dead_end is None)
    for term in dict.fromkeys(term for part in parts for term in part.role or ()):
        takes = TERMS[term] & set(method.attaches)
        if not takes:
            yield (
                f"{binding.label} names {term}, where {method.spoken[0]} cannot stand\n"
                f"  it attaches to {one_of(sorted(method.attaches))}"
            )
        elif not any(present[role] for role in takes):
            dead = [site for site in sites if site.role in takes]
            which = " that a gradient comes to" if dead else ""
            there_is = _dead_ends(dead) or _inventory(binding, sites)
            yield f"{binding.label} names {term}, of which this model has none{which}\n  {there_is}"
    towers = {site.tower for site in sites if site.tower is not None}
    for tower in dict.fromkeys(tower for part in parts for tower in part.tower or ()):
        if tower not in towers:
            # Parts that the example does not reach are never run, and so not known.
            listed = (
                f"its towers are {', '.join(sorted(towers))}; pass example inputs that reach another, such "
                "as images, sound or tokens of the decoder"
            )
            found = listed if towers else "it has no towers to choose from"
            yield f"{binding.label} names tower {tower}, which this model lacks\n  {found}"


def _missing_layers(binding: Binding, depths: Depths) -> Iterator[str]:
    """Yields each choice of layers that goes beyond every tower it may be about."""
    where = binding.rule.where
    towers = where.tower or tuple(depths)
    relevant = {tower: depth for tower, depth in depths.items() if tower in towers}
    deepest = max(relevant.values(), default=0)
    for layers in dict.fromkeys(part.layers for part in where.parts if part.layers):
        if depth_needed(layers) > deepest:
            yield f"{binding.label} names layers {layers}, out of range\n  {_layer_ranges(relevant)}"


def _layer_ranges(depths: Depths) -> str:
    if not depths:
        return "no layers were found in this model"
    ranges = [f"{_tower(tower)} has layers 0-{depth - 1}" for tower, depth in depths.items()]
    return "; ".join(ranges)


def _tower(tower: Tower | None) -> str:
    return f"the {tower} tower" if tower is not None else "the model"


def _inventory(binding: Binding, sites: tuple[Site, ...]) -> str:
    """Returns, with their counts, the roles of a model where a method can stand, else all of them."""
    method = binding.rule.use
    fitting = [site for site in sites if site.role in method.attaches]
    listed = ", ".join(f"{count} {role}" for role, count in _roles(fitting or sites).items())
    return f"this model has {listed}" if listed else "no place of any role was found in this model"


def _dead_ends(sites: Iterable[Site]) -> str:
    """Returns the first of some places that no rule means, with the reason."""
    return next((f"'{site.path}': {site.dead_end}" for site in sites), "")


def _roles(sites: Iterable[Site]) -> Counter[str]:
    return Counter(f"{site.role} (cross)" if site.cross else str(site.role) for site in sites)


def _nothing_left(binding: Binding, sites: tuple[Site, ...], depths: Depths) -> str:
    """Returns how many places were left after each criterion, and what there is."""
    left = list(sites)
    steps: list[str] = []
    for criterion in rule_criteria(binding.rule, depths):
        left = [site for site in left if criterion.holds(site)]
        steps.append(f"{len(left)} {criterion.text}")
        if not left:
            break
    lines = [f"{binding.label} finds no place", f"places left: {', '.join(steps)}"]
    patterns = [part.path for part in binding.rule.where.parts if part.path is not None]
    hints = (_path_hint(pattern, sites) for pattern in patterns)
    return "\n  ".join([*lines, *filter(None, hints), _inventory(binding, sites)])


def _path_hint(pattern: str, sites: tuple[Site, ...]) -> str:
    """Returns what a path that matches nothing was probably meant to be."""
    paths = {site.path for site in sites}
    if is_expression(pattern) or any(path_matches(pattern, path) for path in paths):
        return ""
    names = {name for path in paths for name in path.split(".")}
    plain = [difflib.get_close_matches(piece, names, n=1) for piece in pattern.split(".")]
    pieces = [close[0] if close else piece for piece, close in zip(pattern.split("."), plain, strict=True)]
    for meant in (f"**.{pattern}", ".".join(pieces), "**." + ".".join(pieces)):
        if any(path_matches(meant, path) for path in paths):
            return f"no place is at {quoted(pattern)}; did you mean {quoted(meant)}?"
    role = did_you_mean(pattern, tuple(SHORT_NAMES))
    example = f"; there is, for example, {quoted(max(paths))}" if paths else ""
    return f"no place is at {quoted(pattern)}{role or example}"


def _unbound_parts(binding: Binding, sites: tuple[Site, ...], depths: Depths) -> Iterator[str]:
    """Yields each part of a rule that could be left out without any effect.

    A name in a list that selects nothing is a mistake even where the others select something.
    """
    where = binding.rule.where
    for term in where.role or ():
        if len(where.role or ()) > 1 and not any(site.role in roles_of((term,)) for site in binding.sites):
            yield f"{binding.label} selects no {term} with its other criteria; leave {term} out or widen them"
    for tower in where.tower or ():
        if len(where.tower or ()) > 1 and not any(site.tower is tower for site in binding.sites):
            yield f"{binding.label} selects nothing in {tower}; leave {tower} out or widen the other criteria"
    for branch in where.or_ or ():
        alone = _with(binding.rule, or_=None, and_=(*(where.and_ or ()), branch))
        if not selected(alone, sites, depths):
            yield f"{binding.label} selects nothing in ({selector_sentence(branch)}); leave it out or mend it"
    if where.not_ is not None and selected(_with(binding.rule, not_=None), sites, depths) == binding.sites:
        hints = (_path_hint(part.path, sites) for part in where.not_.parts if part.path is not None)
        exception = f"`except {selector_sentence(where.not_)}`"
        told = f"{binding.label} excludes nothing by {exception}; leave it out or mend it"
        yield "\n  ".join([told, *filter(None, hints)])


def _with(rule: Rule, **changes: object) -> Rule:
    return rule.model_copy(update={"where": rule.where.model_copy(update=changes)})


def _unmet_expectation(binding: Binding) -> Iterator[str]:
    expected, found = binding.rule.expect, len(binding.sites)
    if expected is None or expected == found:
        return
    towers = Counter(site.tower for site in binding.sites)
    if len(towers) > 1:
        shares = [f"{count} in {_tower(tower)}" for tower, count in towers.items()]
    else:
        shares = [f"{count} of role {role}" for role, count in _roles(binding.sites).items()]
    fitting = [str(tower) for tower, count in towers.items() if count == expected and tower is not None]
    narrow = f"narrow it by `tower: {fitting[0]}`, or " if fitting else ""
    yield (
        f"{binding.label} expects {counted(expected, 'site')}, found {found}\n"
        f"  {', '.join(shares)}\n"
        f"  {narrow}write `expect: {found}` if that is meant"
    )


def _unfit_settings(binding: Binding) -> Iterator[str]:
    """Yields each problem of the method once, with the number of places that have it."""
    method = binding.rule.use
    having: dict[str, list[Site]] = defaultdict(list)
    for site in binding.sites:
        for problem in method.at(site).problems(site):
            having[problem].append(site)
    for problem, where in having.items():
        others = f" and {counted(len(where) - 1, 'other place')}" if len(where) > 1 else ""
        yield f"{binding.label}: {problem}\n  at '{where[0].path}' ({where[0].role}){others}"


def _unknown_words(binding: Binding, sites: tuple[Site, ...]) -> Iterator[str]:
    """Yields the token of a text that is beyond every table which it could be looked up in."""
    entries = max((site.width_in for site in sites if site.role is Role.EMBEDDING), default=None)
    largest = max(binding.rule.use.words or (0,))
    if entries is not None and largest >= entries:
        yield (
            f"{binding.label}: token {largest} of its text is beyond the {entries} entries of the embedding\n"
            "  pass the tokenizer of this model"
        )
