"""`register` and `known_methods`: every method that a spec may name, the package's own and users' own.

A method is one file, in this package or outside. One outside becomes known when it is registered,
or when it is installed with an entry point in the group `peft_compiler.methods`.
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any, TypeVar, get_args

from peft_compiler.errors import MethodError
from peft_compiler.methods import METHODS, Method, NoMerge, Wiring
from peft_compiler.site import Role

GROUP = "peft_compiler.methods"
"""The group of entry points whose objects are methods."""

KIND = re.compile(r"[a-z][a-z0-9_]*")
SPOKEN = re.compile(r"[a-z][\w-]*(?: [\w-]+)*", re.IGNORECASE)
RESERVED = frozenset({"kind", "recipe", "train"})
"""Words that stand for something else where a method may be named."""

AnyClass = TypeVar("AnyClass", bound=type[Method])

_registered: dict[str, type[Method]] = {}


def register(method: AnyClass) -> AnyClass:
    """Returns `method`, a class, which specs may name from now on; so it can be a decorator.

    Defining the same class again, as in a notebook, and registering it takes the place of the first.

    Raises:
        MethodError: If it is declared wrongly, or one of its names is taken; every reason is listed.
    """
    problems = list(declaration_problems(method)) or list(_clashes(method))
    if problems:
        raise MethodError(f"{getattr(method, '__name__', method)} cannot be registered", problems)
    for other in [known for known in _registered.values() if _is_again(method, known)]:
        del _registered[kind_of(other)]
    _registered[kind_of(method)] = method
    return method


def known_methods() -> tuple[type[Method], ...]:
    """Returns every method that a spec may name: the package's, then others in order of registration.

    Raises:
        MethodError: If an installed package offers a method that cannot be loaded or registered.
    """
    _load_installed()
    return (*METHODS, *_registered.values())


def kind_of(method: type[Method]) -> str:
    """Returns what a spec calls a method."""
    return method.model_fields["kind"].default


@cache
def _load_installed() -> None:
    """Registers the methods that installed packages offer, once."""
    problems: list[str] = []
    for entry in entry_points(group=GROUP):
        try:
            register(entry.load())
        except Exception as error:  # Whatever the import of another's module may raise.
            package = entry.dist.name if entry.dist else "an unknown package"
            problems.append(
                f"{entry.name} = {entry.value} of {package}: {type(error).__name__}: {error}; "
                "repair or uninstall the package"
            )
    if problems:
        raise MethodError("an installed package offers a method that cannot be used", problems)


def declaration_problems(method: object) -> Iterator[str]:
    """Yields what is wrong with how a method's class is declared."""
    if not (isinstance(method, type) and issubclass(method, Method)):
        yield "found no class of a method; expected a subclass of peft_compiler.methods.Method"
        return
    if inspect.isabstract(method):
        yield f"does not define {' and '.join(sorted(method.__abstractmethods__))}"
    kind = method.model_fields["kind"]
    if get_args(kind.annotation) != (kind.default,) or not KIND.fullmatch(str(kind.default)):
        yield "declares no kind; write `kind: Literal['name'] = 'name'`, in lower case"
    yield from _ill_typed(method)
    fields = set(method.model_fields) - {"kind"}
    if unsayable := sorted(name for name in (*fields, *method.spoken_fields) if name != name.lower()):
        yield f"names settings {', '.join(unsayable)}, which no sentence can say; write them in lower case"
    if strangers := sorted(set(method.spoken_fields.values()) - fields):
        yield f"has words in `spoken_fields` for {', '.join(strangers)}, which are none of its fields"


def _ill_typed(method: Any) -> Iterator[str]:
    """Yields each class variable that does not hold what it should; no type checker may have seen it."""
    spoken, attaches = method.spoken, method.attaches
    if not isinstance(method.paper, str) or not method.paper:
        yield "declares no paper; write its identifier, such as 'arXiv:2106.09685'"
    if not isinstance(spoken, tuple) or not spoken or not all(SPOKEN.fullmatch(str(name)) for name in spoken):
        yield "declares no `spoken`; write a tuple of names that begin with a letter, such as ('lora',)"
    wired = attaches and isinstance(attaches, Mapping)
    if not wired or not all(isinstance(r, Role) and isinstance(w, Wiring) for r, w in attaches.items()):
        yield "declares no `attaches`; write a mapping of roles to wirings"
    if not method.default_roles:
        yield "declares no `default_roles`; write where it stands when a rule names no role"
    if not isinstance(method.identity, bool):
        yield "declares no `identity`; write whether a fresh insertion leaves the outputs as they were"
    if not (isinstance(method.merge, NoMerge) or callable(method.merge)):
        yield "declares no `merge`; write a merge rule, or NoMerge with the reason"


def _clashes(method: type[Method]) -> Iterator[str]:
    """Yields each name of a method that stands for something else already."""
    others = [other for other in (*METHODS, *_registered.values()) if not _is_again(method, other)]
    kinds = {kind_of(other): other for other in others}
    names = {_heard(name): other for other in others for name in other.spoken}
    for label, said, taken in (("kind", [kind_of(method)], kinds), ("spoken name", method.spoken, names)):
        for name in said:
            heard = name if label == "kind" else _heard(name)
            if heard in RESERVED:
                yield f"{label} '{name}' is a word of the spec's own; choose another"
            elif heard in taken:
                yield f"{label} '{name}' is taken by {taken[heard].__name__}; choose another"


def _heard(name: str) -> str:
    # A sentence may say a name in any case, and in the plural.
    return name.lower().removesuffix("s")


def _is_again(method: type[Method], other: type[Method]) -> bool:
    """Whether a class is the other one, or defined by the same statement once more."""
    return (method.__module__, method.__qualname__) == (other.__module__, other.__qualname__)
