"""A user's own method: known everywhere once it is registered, and refused with the reason."""

import json
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import peft_compiler as pc
from peft_compiler import registering
from peft_compiler.cli import app
from peft_compiler.methods import METHODS, Method, NoMerge, Wiring
from peft_compiler.registering import declaration_problems, known_methods, register
from peft_compiler.site import Site
from peft_compiler.spec import Rule, Spec
from peft_compiler.spec.read import read_spec
from peft_compiler.spec.schema import json_schema
from peft_compiler.spec.write import to_sentence, to_yaml
from tests import zoo


class Gate(Method, frozen=True):
    """One factor for each feature of a sub-layer's result."""

    paper = "own"
    attaches = {pc.Role.FEED_FORWARD: Wiring.AFTER, pc.Role.ATTENTION: Wiring.AFTER}  # noqa: RUF012  (as the tutorial has it)
    spoken = ("feature gate",)
    spoken_fields = {"start": "initial"}  # noqa: RUF012  (as the tutorial has it)
    default_roles = (pc.Role.FEED_FORWARD,)
    identity = True
    merge = NoMerge("a sub-layer's result has no weight of its own")

    kind: Literal["gate"] = "gate"
    initial: float = 1.0

    def starts_as_identity(self) -> bool:
        return self.initial == 1

    def parameter_count(self, site: Site) -> int:
        return site.width_out

    def build(self, site: Site, host: nn.Module, generator: torch.Generator) -> nn.Module:
        return Factor(site.width_out, self.initial)


class Factor(nn.Module):
    """factor · y."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((width,), initial))

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return y * self.factor


@pytest.fixture(autouse=True)
def _apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers or installs is unknown to the next."""
    monkeypatch.setattr(registering, "_registered", {})
    registering._load_installed.cache_clear()
    yield
    registering._load_installed.cache_clear()


def installed(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    entries = [EntryPoint(name, value, registering.GROUP) for name, value in values.items()]
    monkeypatch.setattr(
        registering, "entry_points", lambda group: entries if group == registering.GROUP else []
    )


def declared(name: str = "Own", parent: type[Method] = Gate, **declarations: Any) -> type[Method]:
    """A class like `parent` but for `declarations`."""
    annotations = {"kind": Literal[declarations["kind"]]} if "kind" in declarations else {}
    return type(name, (parent,), {"__module__": __name__, "__annotations__": annotations, **declarations})


def test_every_method_of_the_package_is_declared_as_a_users_must_be() -> None:
    assert [problem for method in METHODS for problem in declaration_problems(method)] == []


def test_an_unknown_method_is_no_method_in_any_form() -> None:
    for source in ({"rules": [{"use": "gate"}]}, {"rules": [{"use": {"gate": {"initial": 2}}}]}):
        with pytest.raises(pc.SpecError, match=r"unknown method 'gate', expected adalora, "):
            read_spec(source)
    with pytest.raises(pc.SpecError, match="found 'feature', expected a method"):
        read_spec("feature gate on ffn")


def test_a_registered_one_is_a_method_in_every_form() -> None:
    assert register(Gate) is Gate
    expected = Spec(rules=(Rule(use=Gate(initial=2)),))
    assert read_spec("Feature gates start=2") == expected
    assert read_spec({"rules": [{"use": {"gate": {"initial": 2}}}]}) == expected
    assert to_sentence(expected) == "feature gate initial=2"
    assert "use: {gate: {initial: 2}}" in to_yaml(expected)
    assert read_spec(json.loads(expected.model_dump_json(exclude_defaults=True))) == expected
    assert json_schema()["$defs"]["Gate"]["properties"]["initial"]["type"] == "number"
    assert "gate" in json_schema()["$defs"]["Rule"]["properties"]["use"]["anyOf"][0]["enum"]
    assert "feature gate" in CliRunner().invoke(app, ["check", "feature gate"]).output


def test_its_mistakes_are_told_like_any_others() -> None:
    register(Gate)
    with pytest.raises(
        pc.SpecError, match=r"found 'feature gat', expected .*; did you mean 'feature gate'\?"
    ):
        read_spec("feature gat on ffn")
    with pytest.raises(
        pc.SpecError, match=r"unknown key 'initail', expected initial; did you mean 'initial'\?"
    ):
        read_spec({"rules": [{"use": {"gate": {"initail": 2}}}]})
    with pytest.raises(pc.SpecError, match=r"unknown method 'gaet', expected .*; did you mean 'gate'\?"):
        read_spec({"rules": [{"use": "gaet"}]})


def test_it_is_compiled_verified_and_loaded(tmp_path: Any) -> None:
    register(Gate)
    model = zoo.build("llama")
    tuned = pc.compile(model, "feature gates; LoRA r=2 on q", zoo.inputs("llama"))
    assert pc.verify(tuned).ok
    pc.save(tuned, tmp_path / "adapter")
    again = pc.load(model, tmp_path / "adapter", zoo.inputs("llama"))
    assert set(again.state_dict()) == set(tuned.state_dict())


def test_registered_twice_is_registered_once_and_a_cell_run_again_replaces() -> None:
    register(Gate)
    register(Gate)
    again, renamed = (
        declared("Own", kind="own", spoken=("own",)),
        declared("Own", kind="mine", spoken=("own",)),
    )
    register(again)
    register(renamed)
    assert known_methods() == (*METHODS, Gate, renamed)


@pytest.mark.parametrize(
    ("method", "problem"),
    [
        (7, "found no class of a method; expected a subclass of peft_compiler.methods.Method"),
        (declared(kind="lora"), "kind 'lora' is taken by LoRA; choose another"),
        (declared(kind="recipe"), "kind 'recipe' is a word of the spec's own; choose another"),
        (declared(kind="Own"), "declares no kind; write `kind: Literal['name'] = 'name'`, in lower case"),
        (declared(kind="own", spoken=("LoRAs",)), "spoken name 'LoRAs' is taken by LoRA; choose another"),
        (
            declared(kind="own", spoken=("train",)),
            "spoken name 'train' is a word of the spec's own; choose another",
        ),
        (
            declared(kind="own", spoken="own"),
            "declares no `spoken`; write a tuple of names that begin with a letter, such as ('lora',)",
        ),
        (
            declared(kind="own", paper=""),
            "declares no paper; write its identifier, such as 'arXiv:2106.09685'",
        ),
        (
            declared(kind="own", merge="none"),
            "declares no `merge`; write a merge rule, or NoMerge with the reason",
        ),
        (
            declared(kind="own", spoken_fields={"r": "rank"}),
            "has words in `spoken_fields` for rank, which are none of its fields",
        ),
        (
            declared(kind="own", spoken_fields={"R": "initial"}),
            "names settings R, which no sentence can say; write them in lower case",
        ),
    ],
)
def test_what_cannot_be_registered_is_refused_with_the_reason(method: Any, problem: str) -> None:
    with pytest.raises(pc.MethodError) as caught:
        register(method)
    assert problem in caught.value.problems
    assert known_methods() == METHODS


def test_what_is_not_defined_is_named() -> None:
    class Unbuilt(Method, frozen=True):
        paper: ClassVar[str] = "own"
        attaches = Gate.attaches
        spoken = ("unbuilt",)
        default_roles = Gate.default_roles
        identity = True
        merge = Gate.merge
        kind: Literal["unbuilt"] = "unbuilt"

    with pytest.raises(pc.MethodError) as caught:
        register(Unbuilt)
    assert str(caught.value) == "Unbuilt cannot be registered\n  does not define build and parameter_count"


def test_installed_ones_are_known_when_a_spec_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, gate=f"{__name__}:Gate")
    assert read_spec("feature gate").rules[0].use.kind == "gate"


def test_installed_ones_that_cannot_be_used_are_all_named(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, gone="no_such_package:Gate", other="json:dumps")
    with pytest.raises(pc.MethodError) as caught:
        read_spec("LoRA on q")
    assert caught.value.problems == (
        "gone = no_such_package:Gate of an unknown package: ModuleNotFoundError: "
        "No module named 'no_such_package'; repair or uninstall the package",
        "other = json:dumps of an unknown package: MethodError: dumps cannot be registered\n"
        "  found no class of a method; expected a subclass of peft_compiler.methods.Method; "
        "repair or uninstall the package",
    )


def test_importing_the_package_loads_none(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, gone="no_such_package:Gate")
    assert register(Gate) is Gate
