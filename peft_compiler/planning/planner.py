"""`make_plan`: which insertion goes where, under which name."""

from collections import Counter
from collections.abc import Iterator

from peft_compiler.errors import PlanError
from peft_compiler.methods import Wiring
from peft_compiler.plan import Insertion, Plan
from peft_compiler.planning.binding import Binding, bind
from peft_compiler.planning.clashes import clashes
from peft_compiler.planning.misfits import misfits
from peft_compiler.site import Site
from peft_compiler.spec import Spec
from peft_compiler.spec.select import depths_of


def make_plan(spec: Spec, sites: tuple[Site, ...], base_parameters: int) -> Plan:
    """Returns the plan for a model with these `sites`: rule by rule, each in the order of the sites.

    What maps a weight comes before everything else, so that the plan is the order in which
    insertions at one projection take effect.

    Raises:
        PlanError: If a rule does not fit, or two rules do not fit together; every problem is listed.
    """
    bindings = bind(spec, sites, depths_of(sites))
    problems = [problem for binding in bindings for problem in misfits(binding, sites)]
    problems += clashes(bindings)
    if problems:
        raise PlanError("the spec does not fit this model", problems)
    # What maps a weight sees the base's own; what joins the projection from outside comes after it.
    ordered = sorted(_insertions(bindings, sites), key=lambda i: i.wiring is not Wiring.ON_WEIGHT)
    return Plan(spec, tuple(ordered), base_parameters)


def _insertions(bindings: tuple[Binding, ...], sites: tuple[Site, ...]) -> Iterator[Insertion]:
    names = _names(sites)
    for index, binding in enumerate(bindings):
        for site in binding.sites:
            stem, ending = names[site]
            method = binding.rule.use.at(site)
            yield Insertion(site, method, f"{stem}_{method.kind}{ending}", index)


def _names(sites: tuple[Site, ...]) -> dict[Site, tuple[str, str]]:
    """Returns how the name of an insertion at each site begins and ends.

    Names depend on the model alone: another rule changes neither them nor, as initial
    values are seeded by name, what the insertions start from.

    Returns:
        Pairs such as `("query", "")`, `("cross_query", "")` beside a self-attention in the
        same module, and `("feed_forward", "_2")` at the second such place of a module.
    """
    self_attention = {(site.path, site.role) for site in sites if not site.cross}
    names: dict[Site, tuple[str, str]] = {}
    taken: Counter[tuple[str, str]] = Counter()
    for site in sites:
        word = site.role.rpartition(".")[2]
        stem = f"cross_{word}" if site.cross and (site.path, site.role) in self_attention else word
        taken[site.path, stem] += 1
        ordinal = taken[site.path, stem]
        names[site] = (stem, f"_{ordinal}" if ordinal > 1 else "")
    return names
