"""The contract has teeth: a method that breaks one clause is told which, and how."""

import subprocess
import sys
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn

from peft_compiler import registering
from peft_compiler.methods import Method, NoMerge, Wiring
from peft_compiler.role import Role
from peft_compiler.site import Site
from peft_compiler.testing import assert_keeps_contract, contract
from peft_compiler.testing.checks import examples_once
from peft_compiler.testing.clauses import CLAUSES
from peft_compiler.testing.places import examples


class Scaled(nn.Module):
    """factor · y."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(width))

    def forward(self, y: Tensor) -> Tensor:
        return y * self.factor


class Lent(Scaled):
    """Gives a view of its factor."""

    def forward(self) -> Tensor:
        return self.factor[None]


class Borrowed(nn.Module):
    """factor · y, with a factor that another module gives."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lent = Lent(width)

    def forward(self, y: Tensor) -> Tensor:
        return y * self.lent()[0]


def fold(inserted: nn.Module, parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Returns the parameters with their rows scaled."""
    assert isinstance(inserted, Scaled)
    factor = inserted.factor.detach()
    return {name: p * (factor[:, None] if name == "weight" else factor) for name, p in parameters.items()}


class Scale(Method, frozen=True):
    """A method that keeps the contract: one factor for each feature of the output of keys."""

    paper: ClassVar[str] = "own"
    attaches: ClassVar[Mapping[Role, Wiring]] = {Role.ATTENTION_OUTPUT: Wiring.AFTER}
    spoken: ClassVar[tuple[str, ...]] = ("scale",)
    default_roles: ClassVar[tuple[Role, ...]] = (Role.ATTENTION_OUTPUT,)
    identity: ClassVar[bool] = True
    merge: ClassVar[Any] = fold

    kind: Literal["scale"] = "scale"
    largest: int = 99

    def problems(self, site: Site) -> Any:
        yield from super().problems(site)
        if site.experts or len(site.shape) > 2:
            yield "it takes matrices only"

    def parameter_count(self, site: Site) -> int:
        return site.width_out

    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> nn.Module:
        return Scaled(site.width_out)


class Uncounted(Scale, frozen=True):
    def parameter_count(self, site: Site) -> int:
        return site.width_out + 1


class Moving(Scale, frozen=True):
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> nn.Module:
        built = Scaled(site.width_out)
        nn.init.constant_(built.factor, 1.5)
        return built


class Modest(Scale, frozen=True):
    identity: ClassVar[bool] = False


class Unreached(Scale, frozen=True):
    def parameter_count(self, site: Site) -> int:
        return site.width_out + 1

    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> nn.Module:
        built = Scaled(site.width_out)
        built.spare = nn.Parameter(torch.zeros(1))
        return built


class Global(Scale, frozen=True):
    identity: ClassVar[bool] = False

    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> nn.Module:
        built = Scaled(site.width_out)
        nn.init.normal_(built.factor)
        return built


class Double(Scale, frozen=True):
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> nn.Module:
        return Scaled(site.width_out).double()


class Copying(Scale, frozen=True):
    identity: ClassVar[bool] = False

    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> nn.Module:
        built = Scaled(site.width_out)
        built.factor = nn.Parameter(host.get_parameter("weight").detach().flatten()[: site.width_out].clone())
        return built


class Lending(Scale, frozen=True):
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> nn.Module:
        return Borrowed(site.width_out)


class Meddling(Scale, frozen=True):
    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> nn.Module:
        with torch.no_grad():
            host.get_parameter("weight").mul_(1.5)
        return Scaled(site.width_out)


class Misfolding(Scale, frozen=True):
    merge: ClassVar[Any] = lambda inserted, parameters: parameters


class Nameless(Scale, frozen=True):
    merge: ClassVar[Any] = NoMerge("")


class Forgetful(Scale, frozen=True):
    merge: ClassVar[Any] = NoMerge("it is here to be copied")

    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> nn.Module:
        built = Scaled(site.width_out)
        built.register_buffer("rest", torch.zeros(1), persistent=False)
        built.forward = lambda y: y * built.factor  # a copy still runs the first one's
        return built


class Restless(Scale, frozen=True):
    def at(self, site: Site) -> "Restless":
        return self.model_copy(update={"largest": self.largest - 1})


class Shy(Scale, frozen=True):
    def problems(self, site: Site) -> Any:
        yield from super().problems(site)
        yield "not today"


class Lost(Scale, frozen=True):
    spoken: ClassVar[Any] = "lost"


def test_a_good_one_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registering, "_registered", {})
    registering.register(Scale)
    assert_keeps_contract(Scale())


def test_one_that_no_spec_can_name_is_told_what_to_do() -> None:
    with pytest.raises(AssertionError) as caught:
        assert_keeps_contract(Scale())
    assert str(caught.value).split("\n") == [
        "Scale(kind='scale', largest=99) does not keep its contract",
        "  Scale(kind='scale', largest=99) in a model: every promise: no spec can name the class; "
        "decorate it with `peft_compiler.register`",
    ]


def test_a_host_that_is_meddled_with_is_nobody_elses() -> None:
    with pytest.raises(AssertionError):
        assert_keeps_contract(Meddling(), ["linear"])
    before, after = examples()["linear"].host, examples_once()["linear"].host
    assert torch.equal(before.get_parameter("weight"), after.get_parameter("weight"))


def test_it_is_tried_wherever_it_fits_and_in_a_model() -> None:
    names = [str(check) for check in contract(Scale())]
    places = ("linear", "linear without bias", "rows of a linear", "transposed", "rows of a transposed")
    for place in places:
        for clause in CLAUSES:
            assert f"Scale(kind='scale', largest=99) at {place}: {clause}" in names
    assert "Scale(kind='scale', largest=99) in a model: every promise" in names
    assert not [name for name in names if " experts" in name or "conv" in name]


def test_only_the_places_that_are_named_are_tried() -> None:
    checks = contract(Scale(), ["linear"], copies_host=True)
    assert len(checks) == 1 + len(CLAUSES) - 1 + 1


@pytest.mark.parametrize(
    ("method", "clause", "found"),
    [
        (Uncounted, "the formula counts what is built", "built 6 parameters, the formula says 7"),
        (
            Moving,
            "a fresh one is the identity where promised",
            "a fresh one changes the output, though it promises not to",
        ),
        (
            Modest,
            "a fresh one is the identity where promised",
            "a fresh one changes nothing, bit for bit; promise it: `identity = True`",
        ),
        (Unreached, "gradients reach every parameter", "no gradient reaches spare"),
        (Global, "only its generator is drawn from", "building draws from the global random state"),
        (
            Double,
            "it is built in float32 on the cpu",
            "expected float32 on the CPU, found {'factor':",
        ),
        (
            Copying,
            "it is built beside a host on meta",
            "takes values from the host; say so: `copies_host=True`",
        ),
        (
            Lending,
            "it gives copies of its parameters",
            "returns its lent.factor, which may be gone by then; return a `clone()`",
        ),
        (Meddling, "the host stays as it was", "the host's weight changed"),
        (Misfolding, "the merge rule is the wired function", "Tensor-likes are not close!"),
        (Nameless, "the merge rule is the wired function", "declares no merge rule and no reason"),
        (Forgetful, "it survives copies and files", "AttributeError: Can't "),
        (Restless, "its spec round trips", "`at` gives another method the second time"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_broken_one_is_told_which_clause_and_how(method: type[Method], clause: str, found: str) -> None:
    with pytest.raises(AssertionError) as caught:
        assert_keeps_contract(method(), ["linear"])
    expected = f"\n  {method().at(LINEAR)!r} at linear: {clause}: {found}".replace("98", "99")
    assert expected in str(caught.value)


LINEAR = Site(Role.ATTENTION_OUTPUT, "", None, 8, 6)  # pyright: ignore[reportArgumentType]


def test_one_that_refuses_every_place_is_told_its_reasons() -> None:
    with pytest.raises(AssertionError) as caught:
        assert_keeps_contract(Shy())
    assert "it fits somewhere: it refuses every place: not today" in str(caught.value)


def test_one_that_is_declared_wrongly_is_told_so() -> None:
    with pytest.raises(
        AssertionError, match=r"its class is declared well: declares no `spoken`; write a tuple"
    ):
        assert_keeps_contract(Lost(), ["linear"])


def test_it_needs_no_test_framework() -> None:
    code = "import sys, peft_compiler.testing; print('pytest' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
