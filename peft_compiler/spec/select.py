"""Which places of a model a rule means, one criterion after the other."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from peft_compiler.methods import Wiring
from peft_compiler.site import Role, Site, Tower
from peft_compiler.spec.layers import chosen_layers
from peft_compiler.spec.paths import path_matches
from peft_compiler.spec.spec import Rule, Where
from peft_compiler.spec.terms import TERMS
from peft_compiler.spec.write import quoted, selector_sentence

Depths = Mapping[Tower | None, int]
"""Number of layers of each tower."""


@dataclass(frozen=True, slots=True)
class Criterion:
    """One thing that must hold for a place to be selected.

    Attributes:
        text: The criterion in words, to follow "places".
        holds: Whether it holds for a place.
    """

    text: str
    holds: Callable[[Site], bool]


def depths_of(sites: Collection[Site]) -> Depths:
    """Returns the number of layers of each tower that has some."""
    depths: dict[Tower | None, int] = {}
    for site in sites:
        if site.layer is not None:
            depths[site.tower] = max(depths.get(site.tower, 0), site.layer + 1)
    return depths


def selected(rule: Rule, sites: Collection[Site], depths: Depths) -> tuple[Site, ...]:
    """Returns the places that a rule means, each module once where it is replaced as a whole."""
    criteria = tuple(rule_criteria(rule, depths))
    chosen = [site for site in sites if all(criterion.holds(site) for criterion in criteria)]
    # A module may hold several places, such as a norm that is used twice; there is one to replace.
    replaced = {site.path: site for site in reversed(chosen) if rule.use.wiring(site) is Wiring.REPLACE}
    return tuple(site for site in chosen if replaced.get(site.path, site) is site)


def rule_criteria(rule: Rule, depths: Depths) -> Iterator[Criterion]:
    """Yields what must hold for a place to be selected by a rule, its method's defaults included."""
    method, where = rule.use, rule.where
    yield Criterion(f"for {method.spoken[0]}", lambda site: site.role in method.attaches)
    if not any(mentions(where, criterion) for criterion in ("role", "path", "type")):
        names = ", ".join(method.default_roles)
        yield Criterion(f"of role {names} by default", lambda site: site.role in method.default_roles)
    if method.default_cross is not None and not mentions(where, "attention"):
        kind = "cross" if method.default_cross else "self"
        yield Criterion(f"in {kind} attention by default", lambda site: site.cross is method.default_cross)
    if method.default_decoder is not None and not any(mentions(where, name) for name in ("tower", "path")):
        side = "in" if method.default_decoder else "outside"
        yield Criterion(
            f"{side} a decoder by default",
            lambda site: (site.tower is Tower.DECODER) is method.default_decoder,
        )
    yield from where_criteria(where, frozenset(method.attaches), depths)
    yield Criterion("that a gradient comes to", lambda site: site.dead_end is None)


def mentions(where: Where, criterion: str) -> bool:
    """Whether a selector says something by `criterion`; what it excludes does not count."""
    inner = (*(where.and_ or ()), *(where.or_ or ()))
    return getattr(where, criterion) is not None or any(mentions(part, criterion) for part in inner)


def where_criteria(where: Where, attaches: frozenset[Role], depths: Depths) -> Iterator[Criterion]:
    """Yields each criterion of a selector, for a method that `attaches` to some roles."""

    def satisfies(site: Site, part: Where) -> bool:
        return all(criterion.holds(site) for criterion in where_criteria(part, attaches, depths))

    if (terms := where.role) is not None:
        roles = roles_of(terms) & attaches
        yield Criterion(f"of role {','.join(terms)}", lambda site: site.role in roles)
    if (towers := where.tower) is not None:
        yield Criterion(f"in {','.join(towers)}", lambda site: site.tower in towers)
    if (kind := where.attention) is not None:
        yield Criterion(f"in {kind} attention", lambda site: _is_attention(site, kind))
    if (layers := where.layers) is not None:
        chosen = {tower: chosen_layers(layers, depth) for tower, depth in depths.items()}
        yield Criterion(f"in layers {layers}", lambda site: site.layer in chosen.get(site.tower, ()))
    if (pattern := where.path) is not None:
        yield Criterion(f"at {quoted(pattern)}", lambda site: path_matches(pattern, site.path))
    if (glob := where.type) is not None:
        yield Criterion(f"of type {quoted(glob)}", lambda site: fnmatchcase(site.module_type, glob))
    for part in where.and_ or ():
        yield Criterion(f"in ({selector_sentence(part)})", lambda site, part=part: satisfies(site, part))
    if (branches := where.or_) is not None:
        text = " or ".join(f"({selector_sentence(branch)})" for branch in branches)
        yield Criterion(f"in {text}", lambda site: any(satisfies(site, branch) for branch in branches))
    if (excluded := where.not_) is not None:
        yield Criterion(f"except {selector_sentence(excluded)}", lambda site: not satisfies(site, excluded))


def roles_of(terms: Collection[str]) -> frozenset[Role]:
    """Returns every role that one of the terms may stand for."""
    return frozenset[Role]().union(*(TERMS[term] for term in terms))


def _is_attention(site: Site, kind: str) -> bool:
    if kind == "any":
        return True
    return site.role in TERMS["attention"] and site.cross is (kind == "cross")
