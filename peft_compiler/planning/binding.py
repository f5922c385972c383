"""`Binding`: a rule and the places of a model that it means."""

from dataclasses import dataclass

from peft_compiler.site import Site
from peft_compiler.spec import Rule, Spec
from peft_compiler.spec.select import Depths, selected


@dataclass(frozen=True, slots=True)
class Binding:
    """A rule and the places that it means.

    Attributes:
        label: What messages call the rule.
        rule: The rule.
        sites: The places, in the model's order.
    """

    label: str
    rule: Rule
    sites: tuple[Site, ...]


def bind(spec: Spec, sites: tuple[Site, ...], depths: Depths) -> tuple[Binding, ...]:
    """Returns every rule of a spec, and then every part to train, with its places."""
    labels = [f"rule {number} ({rule.use.kind})" for number, rule in enumerate(spec.rules, start=1)]
    labels += [f"`train {part}`" for part in spec.train]
    return tuple(
        Binding(label, rule, selected(rule, sites, depths))
        for label, rule in zip(labels, spec.all_rules, strict=True)
    )


def counted(number: int, noun: str) -> str:
    """Returns a number and a noun that agree.

    >>> counted(1, "place"), counted(1200, "place")
    ('1 place', '1,200 places')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def some(sites: tuple[Site, ...]) -> str:
    """Returns the first few of some places by role and path."""
    first = ", ".join(f"'{site.path}' ({site.role})" for site in sites[:2])
    return f"{first} and {len(sites) - 2:,} more" if len(sites) > 2 else first
