"""Bases whose weights are kept as codes: what applies trains beside them, and the codes stay, bit for bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peft_compiler as pc
from peft_compiler.lowering.lower import digests_of
from peft_compiler.site import Projection, Site
from tests.citizen.quantised_models import KINDS, PackedByHand, plain, quantised, tokens

pytestmark = [
    # Of bitsandbytes, on its own casts; of torchao, on classes that torch knows by itself by now.
    pytest.mark.filterwarnings("ignore:MatMul8bitLt"),
    pytest.mark.filterwarnings("ignore:.*is an Enum subclass"),
]
FEW = (
    "LoRA r=4 dropout=0.1 on all linear",
    "LoRA r=4 init=pissa on q,v; adapter width=4 after FFN; IA3",
    "deep prompts length=3; prompt length=2; LoKr r=2 on up",
)
APPLY = (
    "LoRA r=4 init=olora on q,v",
    "LoRA r=4 rank_stabilised=true init=kaiming freeze_a=true",
    "VeRA r=5",
    "LoHa r=2",
    "LoKr r=2",
    "FourierFT n=20",
    "AdaLoRA r=3",
    "MiSS r=8",
    "RandLoRA r=4",
    "gated lora r=2",
    "IA3",
    "SSF",
    "BitFit add=true",
    "pfeiffer adapter width=4",
    "parallel adapter width=4",
    "compacter adapter width=8",
    "prefix length=3",
    "llama-adapter length=3",
    "LoReFT r=2",
    "train head",
    "train norm",
    "X-LoRA r=2 train_adapters=true",
)
MAPS = ("DoRA r=4", "OFT block_size=8", "BOFT block_size=8", "HRA r=2")


def without_codes(site: Site) -> Site:
    place = (
        replace(site.place, quantised=False, weight="") if isinstance(site.place, Projection) else site.place
    )
    return replace(site, place=place, module_type="", evidence=())


def train(tuned: Any, steps: int) -> list[float]:
    inputs = tokens()
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-2)
    losses: list[float] = []
    tuned.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(steps):
            loss = tuned(**inputs, labels=inputs["input_ids"]).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    tuned.eval()
    return losses


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(**tokens()).logits


@pytest.mark.parametrize("kind", KINDS)
def test_the_places_are_those_of_the_plain_model(kind: str) -> None:
    model = quantised(kind)
    sites = pc.find_sites(model)
    assert [*map(without_codes, sites)] == [*map(without_codes, pc.find_sites(plain()))]
    coded = {site.path for site in sites if isinstance(site.place, Projection) and site.place.quantised}
    assert len(coded) == 14  # seven linears in each of two layers; not the head
    assert pc.plan(model, "LoRA on q").base_parameters == pc.plan(plain(), "LoRA on q").base_parameters


@pytest.mark.parametrize("spec", FEW)
@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_base_is_trained_beside(kind: str, spec: str, tmp_path: Path) -> None:
    model = quantised(kind)
    base_digests = digests_of(model)
    tuned = pc.compile(model, spec)
    losses = train(tuned, 10)
    assert losses[-1] < losses[0]
    assert digests_of(tuned) == base_digests  # what the layers keep beside their codes, too
    inserted = {p.dtype for name, p in tuned.named_parameters() if p.requires_grad and "lora" in name}
    assert inserted <= {torch.float32}
    pc.save(tuned, tmp_path / "adapter")
    assert digests_of(model) == base_digests
    assert torch.equal(logits(pc.load(model, tmp_path / "adapter")), logits(tuned))


@pytest.mark.parametrize("spec", APPLY)
def test_every_method_that_applies_keeps_every_promise(spec: str) -> None:
    report = pc.verify(pc.compile(quantised("bitsandbytes nf4 of bfloat16"), spec))
    assert report.ok, str(report)


@pytest.mark.parametrize("spec", MAPS)
def test_a_method_that_maps_the_weight_is_refused_when_planned(spec: str) -> None:
    with pytest.raises(pc.PlanError) as caught:
        pc.plan(quantised("packed as GPTQ"), f"{spec} on q")
    kind = spec.split()[0].lower()
    assert str(caught.value) == (
        "the spec does not fit this model\n"
        f"  rule 1 ({kind}): the weight is quantised, and {kind} would map its values: dequantise the base, "
        "or take a method that stands beside the weight, such as LoRA\n"
        "    at 'model.layers.0.self_attn.q_proj' (attention.query) and 1 other place"
    )


def test_a_copy_of_codes_is_refused_when_planned() -> None:
    model: Any = quantised("packed as GPTQ")
    model.lm_head = PackedByHand(model.lm_head)
    with pytest.raises(
        pc.PlanError, match="its weight is quantised, and codes cannot be trained: adapt it with"
    ):
        pc.plan(model, "train head")


@pytest.mark.parametrize("kind", KINDS)
def test_merging_dequantises_only_when_asked(kind: str) -> None:
    tuned = pc.compile(quantised(kind), "LoRA r=4 on q,v,down")
    train(tuned, 3)
    before = logits(tuned)
    with pytest.raises(pc.MergeError) as caught:
        pc.merge(tuned)
    assert caught.value.problems[0] == (
        "model.layers.0.self_attn.q_proj: its weight is quantised, and a sum is none of its codes: "
        "merge(tuned, dequantise=True) gives a base of plain weights, which takes more memory"
    )
    merged = pc.merge(tuned, dequantise=True)
    linears = [module for name, module in merged.named_modules() if name.endswith("_proj")]
    assert {(type(linear), type(linear.weight.data)) for linear in linears} == {(nn.Linear, Tensor)}
    tolerance = 2e-2 if before.dtype is torch.bfloat16 else 5e-3  # 8 bits round what flows in, too
    torch.testing.assert_close(logits(merged), before, rtol=0, atol=tolerance)
    assert torch.equal(logits(tuned), before)


def test_training_goes_on_after_an_evaluation() -> None:
    # In eval mode, on processors that multiply bfloat16, bitsandbytes lays 4-bit codes out anew, in place,
    # for a kernel that gives no gradient.
    model = quantised("bitsandbytes nf4")
    logits(model)
    tuned = pc.compile(model, "LoRA r=4 on q of layers 0")
    first = train(tuned, 2)
    logits(tuned)
    assert train(tuned, 3)[-1] < first[0]
    tuned.train()(**tokens(), labels=tokens()["input_ids"]).loss.backward()
    ups = [p.grad for name, p in tuned.named_parameters() if name.endswith("query_lora.up")]
    assert all(grad is not None and grad.any() for grad in ups)


class WithoutWidths(nn.Module):
    def __init__(self, packed: PackedByHand) -> None:
        super().__init__()
        self.register_buffer("qweight", packed.qweight)
        self.register_buffer("scales", packed.scales)

    forward = PackedByHand.forward


def test_codes_of_which_nothing_is_known_are_refused() -> None:
    model: Any = quantised("packed as GPTQ")
    model.model.layers[1].mlp.up_proj = WithoutWidths(model.model.layers[1].mlp.up_proj)
    with pytest.raises(pc.CaptureError) as caught:
        pc.compile(model, "LoRA on q")
    assert str(caught.value) == (
        "LlamaForCausalLM keeps weights as codes that cannot be told\n"
        "  model.layers.1.mlp.up_proj: 'qweight' holds codes (torch.int32), and nothing tells of what "
        "matrix: give the module in_features and out_features as nn.Linear has them, or dequantise it"
    )
