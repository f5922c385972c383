"""`contract`: the clauses as checks of one method; `assert_keeps_contract`: all of them at once."""

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, partial

from torch import nn

from peft_compiler.analysis.find_sites import find_sites
from peft_compiler.compiling import compile
from peft_compiler.methods import Method
from peft_compiler.registering import declaration_problems, known_methods
from peft_compiler.site import SHORT_NAMES, Role, Site
from peft_compiler.spec import Rule, Spec
from peft_compiler.testing.clauses import CLAUSES, Case, it_is_built_beside_a_host_on_meta
from peft_compiler.testing.decoder import small_decoder
from peft_compiler.testing.places import Example, examples
from peft_compiler.verifying import verify


@dataclass(frozen=True, slots=True)
class Check:
    """One clause of the contract for one method at one place; calling it raises what is not kept.

    Attributes:
        name: The method, the place and the clause.
        run: Raises AssertionError, or what the method itself raises.
    """

    name: str
    run: Callable[[], None]

    def __call__(self) -> None:
        """Runs the check."""
        self.run()

    def __str__(self) -> str:
        return self.name


def contract(
    method: Method, places: Iterable[str] | None = None, copies_host: bool = False
) -> tuple[Check, ...]:
    """Returns the checks of a method, for `pytest.mark.parametrize("check", contract(...), ids=str)`.

    It is built, wired, differentiated, copied and merged at one place of each kind where it may
    stand, then compiled into a small model, where every promise is verified.

    Args:
        method: The method, with its settings; the places are 4 to 9 wide.
        places: Names of `testing.places.examples()`; when left out, all where it fits.
        copies_host: Whether initial values come from the host's, so that a host must have them.
    """
    stands = {name: _standing(method, examples_once()[name]) for name in places or _fitting(method)}
    checks = [Check(f"{method!r}: its class is declared well", partial(_well_declared, method))]
    if not stands:
        checks.append(Check(f"{method!r}: it fits somewhere", partial(_fits_somewhere, method)))
    for name, example in stands.items():
        # A host of its own: a method that meddles with it spoils nobody else's.
        case = Case(method.at(example.site), replace(example, host=deepcopy(example.host)))
        checks += [
            Check(f"{method!r} at {name}: {says}", partial(clause, case))
            for says, clause in CLAUSES.items()
            if not (copies_host and clause is it_is_built_beside_a_host_on_meta)
        ]
    if _stands_in_the_decoder(method):
        checks.append(Check(f"{method!r} in a model: every promise", partial(_verified, method)))
    return tuple(checks)


def assert_keeps_contract(
    method: Method, places: Iterable[str] | None = None, copies_host: bool = False
) -> None:
    """Runs every check of `contract`.

    Raises:
        AssertionError: Listing each clause that is not kept, with what was found.
    """
    broken = list(_broken(contract(method, places, copies_host)))
    if broken:
        raise AssertionError("\n  ".join([f"{method!r} does not keep its contract", *broken]))


def _broken(checks: Iterable[Check]) -> Iterator[str]:
    for check in checks:
        try:
            check()
        except Exception as error:  # Whatever a user's method may raise.
            said = f"{error}" if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            yield f"{check}: {said}".replace("\n", "\n    ")


@cache
def examples_once() -> dict[str, Example]:
    """Returns the examples of every place, drawn once; a case takes a copy of the host."""
    return examples()


@cache
def _decoder_sites() -> tuple[Site, ...]:
    return find_sites(*small_decoder())


def _standing(method: Method, example: Example) -> Example:
    """Returns an example with a role of the method, where it is a projection that may have any."""
    site = example.site
    linear = SHORT_NAMES["linear"]
    roles = [role for role in Role if role in linear and role in method.attaches]
    if site.role in method.attaches or site.role not in linear or not roles:
        return example
    return replace(example, site=replace(site, role=roles[0]))


def _fitting(method: Method) -> list[str]:
    """Returns the names of the places where a method may stand."""
    stands = {name: _standing(method, example).site for name, example in examples_once().items()}
    return [name for name, site in stands.items() if not list(method.at(site).problems(site))]


def _well_declared(method: Method) -> None:
    problems = list(declaration_problems(type(method)))
    assert not problems, "; ".join(problems)


def _fits_somewhere(method: Method) -> None:
    sites = [_standing(method, example).site for example in examples_once().values()]
    reasons = [problem for s in sites if s.role in method.attaches for problem in method.at(s).problems(s)]
    raise AssertionError(f"it refuses every place: {'; '.join(dict.fromkeys(reasons)) or 'of another role'}")


def _stands_in_the_decoder(method: Method) -> bool:
    """Whether the small model has a place for the method by default; it has no cross-attention."""
    roles = {site.role for site in _decoder_sites()} & set(method.default_roles)
    return bool(roles) and not method.default_cross and not method.default_decoder


def _verified(method: Method) -> None:
    named = type(method) in known_methods()
    assert named, "no spec can name the class; decorate it with `peft_compiler.register`"
    model, inputs = small_decoder()
    tuned: nn.Module = compile(model, Spec(rules=(Rule(use=method),)), inputs)
    broken = [str(finding) for finding in verify(tuned).findings if not finding.ok]
    assert not broken, "\n".join(broken)
