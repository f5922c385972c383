"""What every method must satisfy at each place where it may stand: one function for each clause."""

import pickle
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from peft_compiler.methods import Method, NoMerge, Wiring
from peft_compiler.methods._loaded import loaded_buffers
from peft_compiler.site import Projection
from peft_compiler.testing.places import Example


@dataclass(frozen=True, slots=True)
class Case:
    """A method, filled in for a place, at that place."""

    method: Method
    example: Example

    def build(self, seed: int = 0) -> nn.Module:
        """Returns a fresh module."""
        site, host = self.example.site, self.example.host
        return self.method.build(site, host, torch.Generator().manual_seed(seed)).eval()

    def moved(self) -> nn.Module:
        """Returns a module whose parameters, and what is loaded into it, are no longer where they start."""
        inserted, draws = self.build(), torch.Generator().manual_seed(1)
        with torch.no_grad():
            for tensor in (*inserted.parameters(), *loaded_buffers(inserted)):
                tensor.add_(torch.randn(tensor.shape, generator=draws))
        return inserted

    def wired(self, inserted: nn.Module) -> tuple[Tensor, ...]:
        """Returns what the host and `inserted` compute together."""
        output = self.example.wired(self.method.wiring(self.example.site), inserted)
        return output if isinstance(output, tuple) else (output,)


def it_fits(case: Case) -> None:
    """Nothing speaks against the place, and it joins there as its class declares."""
    site, method = case.example.site, case.method
    problems = list(method.problems(site))
    assert not problems, f"the method refuses the place: {'; '.join(problems)}"
    declared = (method.attaches[site.role], Wiring.ON_WEIGHT, Wiring.EXCHANGE_INPUT)
    wiring = method.wiring(site)
    assert wiring in declared, f"found wiring {wiring}, `attaches` declares {method.attaches[site.role]}"


def the_formula_counts_what_is_built(case: Case) -> None:
    """`parameter_count` and `shared_counts` are the trainable parameters of the module."""
    built = list(case.build().parameters())
    site = case.example.site
    formula = case.method.parameter_count(site) + sum(case.method.shared_counts(site).values())
    count = sum(parameter.numel() for parameter in built)
    assert count == formula, f"built {count} parameters, the formula says {formula}"
    assert all(parameter.requires_grad for parameter in built), "a parameter is frozen; make it a buffer"


def a_fresh_one_is_the_identity_where_promised(case: Case) -> None:
    """A fresh module changes nothing, bit for bit, if it promises to; else it changes something."""
    output = case.wired(case.build())
    if case.method.starts_as_identity():
        assert torch.equal(output[0], case.example.host(case.example.x)), (
            "a fresh one changes the output, though it promises not to"
        )
    elif len(output) == 1:
        assert not torch.equal(output[0], case.example.host(case.example.x)), (
            "a fresh one changes nothing, bit for bit; promise it: `identity = True`"
        )
    else:
        assert all(bool((tensor != 0).all()) for tensor in output), "a fresh prompt holds zeros"


def gradients_reach_every_parameter(case: Case) -> None:
    """Away from the start, the output depends on each parameter."""
    inserted, draws = case.moved(), torch.Generator().manual_seed(2)
    outputs = case.wired(inserted)
    torch.stack([(y * torch.randn(y.shape, generator=draws)).sum() for y in outputs]).sum().backward()
    missed = [name for name, p in inserted.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert not missed, f"no gradient reaches {', '.join(missed)}"


def only_its_generator_is_drawn_from(case: Case) -> None:
    """The same seed builds the same module, and the global random state stays as it was."""
    before = torch.get_rng_state()
    first, again = case.build().state_dict(), case.build().state_dict()
    assert torch.equal(torch.get_rng_state(), before), "building draws from the global random state"
    unlike = [name for name in first if not torch.equal(first[name], again[name])]
    assert not unlike, f"the same seed gives other values of {', '.join(unlike)}"


def it_is_built_in_float32_on_the_cpu(case: Case) -> None:
    """Lowering moves a module to its host's device and dtype; it is not for the method to do."""
    wrong = {
        name: f"{p.dtype} on {p.device}"
        for name, p in case.build().named_parameters()
        if (p.dtype, p.device.type) != (torch.float32, "cpu")
    }
    assert not wrong, f"expected float32 on the CPU, found {wrong}"


def it_is_built_beside_a_host_on_meta(case: Case) -> None:
    """Values of the host are not needed: a model without weights can be compiled."""
    host = deepcopy(case.example.host).to("meta")
    built = case.method.build(case.example.site, host, torch.Generator())
    devices = {tensor.device.type for tensor in chain(built.parameters(), built.buffers())}
    assert "meta" not in devices, "takes values from the host; say so: `copies_host=True`"


def it_gives_copies_of_its_parameters(case: Case) -> None:
    """No module returns a parameter or a view of one: who shards parameters takes them back once it ran."""
    inserted = case.moved()
    names = {tensor.untyped_storage().data_ptr(): name for name, tensor in inserted.named_parameters()}
    given: list[str] = []

    def note(_module: nn.Module, _args: Any, output: Any) -> None:
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        given.extend(names.get(tensor.untyped_storage().data_ptr(), "") for tensor in tensors)

    for module in inserted.modules():
        module.register_forward_hook(note)
    case.wired(inserted)
    returned = sorted(set(filter(None, given)))
    assert not returned, f"returns its {', '.join(returned)}, which may be gone by then; return a `clone()`"


def the_host_stays_as_it_was(case: Case) -> None:
    """Neither building nor running changes the base."""
    host = case.example.host
    before, names = deepcopy(host.state_dict()), [name for name, _ in host.named_modules()]
    case.wired(case.moved())
    assert [name for name, _ in host.named_modules()] == names, "the host has other modules afterwards"
    changed = [name for name, tensor in host.state_dict().items() if not torch.equal(tensor, before[name])]
    assert not changed, f"the host's {', '.join(changed)} changed"


def the_merge_rule_is_the_wired_function(case: Case) -> None:
    """What a merge rule gives computes alone what host and module do together; a reason stands for none."""
    rule = case.method.merge_rule(case.example.site)
    if isinstance(rule, NoMerge):
        assert rule.because, "declares no merge rule and no reason"
        return
    inserted = case.moved()
    merged = _merged_parameters(case, inserted)
    output = functional_call(case.example.host, merged, (case.example.x,))
    torch.testing.assert_close(output, case.wired(inserted)[0], atol=1e-5, rtol=1e-5)


def _merged_parameters(case: Case, inserted: nn.Module) -> dict[str, Tensor]:
    """Returns what the rule gives for the site's rows, put back into whole parameters of the host."""
    site, method, host = case.example.site, case.method, case.example.host
    whole = {name: parameter.detach().clone() for name, parameter in host.named_parameters()}
    rule = method.merge_rule(site)
    assert not isinstance(rule, NoMerge)
    if method.wiring(site) is Wiring.REPLACE:
        return dict(rule(inserted, whole))
    by_output = {**whole}
    if isinstance(site.place, Projection) and site.place.form in (
        "transposed",
        "embedding",
        "transposed_experts",
    ):
        by_output["weight"] = whole["weight"].mT
    rows = torch.tensor(range(site.width_out) if site.rows is None else site.rows.indices)
    axis = 1 if site.experts else 0
    parts = {
        name: tensor.index_select(axis if name == "weight" else 0, rows) for name, tensor in by_output.items()
    }
    for name, tensor in rule(inserted, parts).items():
        by_output[name].index_copy_(axis if name == "weight" else 0, rows, tensor)
    return whole


def it_survives_copies_and_files(case: Case) -> None:
    """A deepcopy, a pickle and a fresh module with its state compute what it does, bit for bit."""
    inserted = case.moved()
    expected = case.wired(inserted)
    loaded = case.build(seed=3)
    loaded.load_state_dict(inserted.state_dict())
    others = {"deepcopy": deepcopy(inserted), "pickle": pickle.loads(pickle.dumps(inserted)), "state": loaded}
    for name, other in others.items():
        found = case.wired(other)
        same = all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert same, f"its {name} computes something else"


def its_spec_round_trips(case: Case) -> None:
    """Its settings survive JSON, and filling in what depends on the place twice changes nothing."""
    method: Any = case.method
    again = type(method).model_validate_json(method.model_dump_json())
    assert again == method, f"found {again!r} after JSON, expected {method!r}"
    assert method.at(case.example.site) == method, "`at` gives another method the second time"


CLAUSES: Mapping[str, Callable[[Case], None]] = {
    clause.__name__.replace("_", " "): clause
    for clause in (
        it_fits,
        the_formula_counts_what_is_built,
        a_fresh_one_is_the_identity_where_promised,
        gradients_reach_every_parameter,
        only_its_generator_is_drawn_from,
        it_is_built_in_float32_on_the_cpu,
        it_is_built_beside_a_host_on_meta,
        it_gives_copies_of_its_parameters,
        the_host_stays_as_it_was,
        the_merge_rule_is_the_wired_function,
        it_survives_copies_and_files,
        its_spec_round_trips,
    )
}
"""The contract at one place, each clause by what it says."""
