"""`verify` finds every promise kept, and each one broken that is broken on purpose."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

import peft_compiler as pc
from peft_compiler.errors import PeftCompilerError
from peft_compiler.lowering.compilation import compilation_of
from peft_compiler.methods import Adapter, LoRA, Method
from peft_compiler.methods.adapter import ResidualBottleneck
from peft_compiler.methods.lora import LinearLoRA
from peft_compiler.verifying import preservation
from peft_compiler.verifying.outputs import distance, equal, tensors_of
from peft_compiler.verifying.subject import BrokenPromiseError, Subject
from peft_compiler.verifying.verify import PROMISES
from tests import zoo

SPEC = "LoRA r=2 on q,v; adapters after FFN; deep prompts length=3 on every layer"
FUSED = "transformer.h.0.attn.c_attn"


def compiled(spec: str = SPEC, name: str = "gpt2") -> nn.Module:
    return pc.compile(zoo.build(name), spec, zoo.inputs(name))


def check(tuned: nn.Module, promise: str) -> str:
    """What the check of one promise finds; raises where it is broken."""
    return PROMISES[promise](Subject.of(tuned, compilation_of(tuned)))


@pytest.mark.parametrize(
    "name", ["gpt2", "llama", "mixtral", "falcon_alibi", "bert", "t5", "vit", "torch_encoder", "handmade"]
)
def test_every_promise_is_kept(name: str) -> None:
    report = pc.verify(compiled(name=name))
    assert report.ok, str(report)
    assert [finding.promise for finding in report.findings] == list(PROMISES)


def test_every_promise_is_kept_after_training_and_nothing_changes() -> None:
    tuned = compiled().train()
    optimiser = torch.optim.AdamW((p for p in tuned.parameters() if p.requires_grad), lr=0.01)
    for _ in range(3):
        ids = zoo.inputs("gpt2")["input_ids"]
        tuned(**zoo.inputs("gpt2"), labels=ids).loss.backward()
        optimiser.step()
    tuned.get_submodule("transformer.h.1").eval()
    state = {name: tensor.clone() for name, tensor in tuned.state_dict().items()}
    gradients = {name: p.grad.clone() for name, p in tuned.named_parameters() if p.grad is not None}
    modes = [module.training for module in tuned.modules()]
    random = torch.get_rng_state()
    report = pc.verify(tuned)
    assert report.ok, str(report)
    assert all(torch.equal(tensor, state[name]) for name, tensor in tuned.state_dict().items())
    assert gradients
    assert all(torch.equal(tuned.get_parameter(name).grad, gradient) for name, gradient in gradients.items())
    assert {name for name, p in tuned.named_parameters() if p.grad is not None} == set(gradients)
    assert [module.training for module in tuned.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)


def test_the_report_has_one_line_for_each_promise() -> None:
    lines = str(pc.verify(compiled("LoRA r=2 on q,v"))).splitlines()
    assert len(lines) == len(PROMISES)
    assert lines[:4] == [
        "ok      only inserted parameters require gradients: 8 of 36 tensors require gradients",
        "ok      the base is as it was when compiled: 29 tensors, bit for bit",
        "ok      the count is the formula's: 512 parameters",
        "ok      every rule is bound: 4 insertions of 1 rules",
    ]


def unfreeze(tuned: nn.Module) -> None:
    tuned.get_parameter("transformer.ln_f.weight").requires_grad_()


def change_the_base(tuned: nn.Module) -> None:
    with torch.no_grad():
        tuned.get_parameter(f"{FUSED}.weight")[0, 0] += 1e-6


def grow(tuned: nn.Module) -> None:
    tuned.get_submodule(f"{FUSED}.inserted.query_lora").extra = nn.Parameter(torch.zeros(7))


def expect_more(tuned: nn.Module) -> None:
    compilation = compilation_of(tuned)
    plan = compilation.plan
    rule = plan.spec.rules[0].model_copy(update={"expect": 12})
    spec = plan.spec.model_copy(update={"rules": (rule, *plan.spec.rules[1:])})
    tuned.__dict__["compilation"] = replace(compilation, plan=replace(plan, spec=spec))


def hook_an_insertion(tuned: nn.Module) -> None:
    # What has no pickle, and is no part of the base.
    tuned.get_submodule(f"{FUSED}.inserted.query_lora").register_forward_hook(lambda *_: None)


def round_to_float32(tuned: nn.Module) -> None:
    tuned.get_submodule("transformer.h.0.mlp").register_forward_hook(
        lambda module, args, output: output.float()
    )


@pytest.mark.parametrize(
    ("promise", "break_it", "message"),
    [
        (
            "only inserted parameters require gradients",
            unfreeze,
            "1 the wrong way round: transformer.ln_f.weight",
        ),
        (
            "the base is as it was when compiled",
            change_the_base,
            f"1 changed since it was compiled: {FUSED}.weight",
        ),
        (
            "the count is the formula's",
            grow,
            f"1 of another size: {FUSED}.inserted.query_lora has 135, its formula gives 128",
        ),
        ("every rule is bound", expect_more, "rule 1 has 4 sites, expected 12"),
        ("another dtype keeps the function", round_to_float32, None),
        ("pickle keeps the function", hook_an_insertion, None),
    ],
)
def test_a_broken_model_is_found_out(
    promise: str, break_it: Callable[[nn.Module], None], message: str | None
) -> None:
    tuned = compiled()
    break_it(tuned)
    finding = next(finding for finding in pc.verify(tuned).findings if finding.promise == promise)
    assert not finding.ok
    assert message is None or finding.detail == message
    assert str(finding).startswith(f"BROKEN  {promise}: ")


def test_a_delta_on_other_rows_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = compiled()
    rewritten = type(tuned.get_submodule(FUSED))
    forward = rewritten.forward
    monkeypatch.setattr(rewritten, "forward", lambda self, x: forward(self, x) + 1e-3)
    with pytest.raises(
        BrokenPromiseError, match=r"^2 fused projections broken: .*\.c_attn changes other rows"
    ):
        check(tuned, "other rows of fused projections are untouched")


def test_a_step_that_counts_its_tokens_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ResidualBottleneck, "forward", lambda self, y: y * (1 + 0.1 * y.shape[1]))
    with pytest.raises(BrokenPromiseError, match=r"^.*e-0. from the whole sequence's, the base .*e-0.$"):
        check(compiled(), "decoding step by step equals decoding at once")


def test_an_insertion_that_is_not_the_identity_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    build = Adapter.build

    def bad(self: Adapter, *args: object) -> nn.Module:
        module = build(self, *args)
        nn.init.constant_(module.up.bias, 1e-3)
        return module

    monkeypatch.setattr(Adapter, "build", bad)
    with pytest.raises(
        BrokenPromiseError, match=r"^6 fresh insertions change the base's outputs; 2 deep_prompts left out$"
    ):
        check(compiled(), "fresh insertions are the identity")


def test_a_parameter_that_no_gradient_reaches_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = LinearLoRA.forward
    monkeypatch.setattr(LinearLoRA, "forward", lambda self, x: forward(self, x).detach())
    with pytest.raises(BrokenPromiseError, match=r"^8 not reached: .*query_lora.down, .* and 5 more$"):
        check(compiled(), "gradients reach every insertion")


def test_a_unit_that_rests_is_no_broken_promise() -> None:
    tuned = compiled("pfeiffer adapters")
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if name.endswith("adapter.down.bias"):
                parameter.fill_(-1.0)  # too low for any input to get beyond the ReLU
    assert check(tuned, "gradients reach every insertion") == "8 tensors reached"


class Noisy(nn.Module):
    """Adds noise in eval mode too, as models do that sample."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 8)
        self.down = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x))) + torch.randn(x.shape)


def test_a_model_that_draws_noise_is_compared_under_the_same_noise() -> None:
    tuned = pc.compile(Noisy(), "LoRA r=2 on up,down", torch.randn(2, 4))
    report = pc.verify(tuned)
    assert report.ok, str(report)


def test_a_load_that_forgets_the_parameters_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preservation, "load", lambda model, folder, inputs: pc.compile(model, SPEC, inputs))
    with pytest.raises(BrokenPromiseError, match=r"^outputs differ$"):
        check(compiled(), "saving and loading keep the function")


def test_a_wrong_merge_rule_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LoRA, "merge", staticmethod(lambda inserted, parameters: parameters))
    with pytest.raises(BrokenPromiseError, match=r"^outputs differ by [0-9.]+e-0[0-9]$"):
        check(compiled("LoRA r=2 on q,v"), "merging keeps the function")


def test_a_merge_that_is_not_promised_says_why() -> None:
    assert check(compiled(), "merging keeps the function") == (
        "not promised: 2 adapter: an activation separates its two projections; "
        "2 deep_prompts: no weight of the base adds keys and values to an attention"
    )


def test_a_check_that_crashes_is_a_broken_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(self: Method, *args: object) -> nn.Module:
        raise RuntimeError("no memory")

    tuned = compiled()
    monkeypatch.setattr(LoRA, "build", crash)
    broken = [finding for finding in pc.verify(tuned).findings if not finding.ok]
    assert [finding.promise for finding in broken] == [
        "fresh insertions are the identity",
        "saving and loading keep the function",
    ]
    assert all("no memory" in finding.detail for finding in broken)


def test_models_that_cannot_be_verified_are_refused() -> None:
    with pytest.raises(PeftCompilerError, match="that was not compiled was given"):
        pc.verify(zoo.build("gpt2"))
    with torch.device("meta"):
        model = type(zoo.build("gpt2"))(zoo.build("gpt2").config)
    with pytest.raises(
        PeftCompilerError, match="on the meta device was given, which has no values to verify"
    ):
        pc.verify(pc.compile(model, "LoRA r=2 on q,v", zoo.inputs("gpt2")))


def test_tensors_are_found_in_whatever_holds_them() -> None:
    a, b = torch.zeros(1), torch.ones(2)
    output = {"logits": a, "states": (b, [a]), "ids": torch.tensor([1]), "none": None}
    assert [id(tensor) for tensor in tensors_of(output)] == [id(a), id(b), id(a)]


def test_distances_are_relative_and_see_what_is_not_finite() -> None:
    nan, inf = float("nan"), float("inf")
    assert distance([torch.tensor([1.0, 100.0])], [torch.tensor([2.0, 100.0])]) == pytest.approx(0.01)
    assert distance([torch.tensor([nan, 1.0])], [torch.tensor([nan, 1.0])]) == 0
    assert distance([torch.tensor([nan])], [torch.tensor([1.0])]) == inf
    assert distance([torch.zeros(2)], [torch.zeros(3)]) == inf
    assert distance([], [torch.zeros(3)]) == inf
    assert equal([torch.zeros(0)], [torch.zeros(0)])
    assert not equal([torch.tensor([0.0])], [torch.tensor([1e-30])])
