"""Adapters that were saved, one by one, are fused; whatever does not fit is told, and changes nothing."""

from pathlib import Path

import pytest
import torch
from torch import nn

import peft_compiler as pc
from tests import zoo
from tests.test_compiling import stir

FUSION = "adapter fusion width=4 adapters=[news, reviews]"


def adapted(spec: str = "pfeiffer adapters width=4", name: str = "bert", by: float = 1.0) -> nn.Module:
    tuned = pc.compile(zoo.build(name), spec, zoo.inputs(name))
    stir(tuned)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.mul_(by)
    return tuned


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    for name, by in (("news", 1.0), ("reviews", -2.0)):
        pc.save(adapted(by=by), tmp_path / name)
    return {name: tmp_path / name for name in ("news", "reviews")}


def inner(fused: nn.Module) -> nn.Module:
    return fused.get_submodule("bert.encoder.layer.1.output.inserted.feed_forward_adapter_fusion")


def test_the_adapters_are_attended_to_as_the_paper_says(folders: dict[str, Path]) -> None:
    fused = pc.compile(zoo.build("bert"), FUSION, zoo.inputs("bert"))
    pc.fuse(fused, folders)
    single = adapted().get_submodule("bert.encoder.layer.1.output.inserted.feed_forward_pfeiffer_adapter")
    module, h = inner(fused), torch.randn(2, 5, zoo.HIDDEN)
    torch.testing.assert_close(module.adapters.news(h), single(h))
    z = torch.stack([module.adapters[name](h) for name in folders], -2)
    query, key = module.query(h), module.key(z)
    share = torch.einsum("btd,btnd->btn", query, key).softmax(-1)
    expected = torch.einsum("btn,btnd,od->bto", share, z, module.value)
    torch.testing.assert_close(module(h), expected)


def test_only_the_attention_is_trained_and_all_is_saved(folders: dict[str, Path], tmp_path: Path) -> None:
    fused = pc.compile(zoo.build("bert"), FUSION, zoo.inputs("bert"))
    pc.fuse(fused, folders)
    learning = [name for name, parameter in fused.named_parameters() if parameter.requires_grad]
    assert {name.rpartition("fusion.")[2] for name in learning} == {
        "query.weight",
        "query.bias",
        "key.weight",
        "key.bias",
        "value",
    }
    assert pc.verify(fused).ok
    pc.save(fused, tmp_path / "fused")
    again = pc.load(zoo.build("bert"), tmp_path / "fused", zoo.inputs("bert"))
    with torch.no_grad():
        ours, theirs = (model(**zoo.inputs("bert")).logits for model in (fused, again))
    assert torch.equal(ours, theirs)


def test_every_misfit_is_told_and_nothing_is_copied(folders: dict[str, Path], tmp_path: Path) -> None:
    pc.save(adapted("pfeiffer adapters width=5 activation=gelu of layers 0"), tmp_path / "other")
    fused = pc.compile(zoo.build("bert"), FUSION, zoo.inputs("bert"))
    before = {name: tensor.clone() for name, tensor in fused.state_dict().items()}
    other = tmp_path / "other"
    with pytest.raises(pc.InterchangeError) as caught:
        pc.fuse(fused, {"news": other, "sports": folders["news"]})
    path = "bert.encoder.layer.{}.output.inserted.feed_forward_pfeiffer_adapter"
    said = set(caught.value.problems)
    assert said >= {
        "'reviews' is in a fusion, but no folder is given for it",
        "'sports' is given, but in no fusion of this model",
        f"'news' ({other}): its adapters have activation=gelu, the fusion has another",
        f"'news' ({other}): {path.format(0)}.down.weight has the shape (5, 32), the fusion has (4, 32)",
        f"'news' ({other}): {path.format(1)}.up.bias is missing from adapter.safetensors",
    }
    assert all(torch.equal(before[name], tensor) for name, tensor in fused.state_dict().items())


def test_an_adapter_of_another_base_is_refused(folders: dict[str, Path]) -> None:
    model = zoo.build("bert")
    with torch.no_grad():
        model.classifier.weight.add_(1)
    fused = pc.compile(model, FUSION, zoo.inputs("bert"))
    with pytest.raises(
        pc.InterchangeError, match="the values of the base's weights are not those of the adapter's"
    ):
        pc.fuse(fused, folders)


MIXTURE = "x-lora r=2 alpha=3 adapters=[news, reviews] on q,v"


@pytest.fixture
def loras(tmp_path: Path) -> dict[str, Path]:
    for name, by in (("news", 1.0), ("reviews", -2.0)):
        pc.save(adapted("LoRA r=2 alpha=3 on q,v", "llama", by), tmp_path / name)
    return {name: tmp_path / name for name in ("news", "reviews")}


def test_loras_are_mixed_as_they_were_saved(loras: dict[str, Path], tmp_path: Path) -> None:
    """With scalings of 1 and 0, the mixture is the model that the LoRA was saved from."""
    model, inputs = zoo.build("llama"), zoo.inputs("llama")
    mixed = pc.compile(model, f"{MIXTURE} softmax=off layerwise=false", inputs)
    pc.fuse(mixed, loras)
    (router,) = mixed.model.inserted.children()
    with torch.no_grad():
        router.layers[0].weight.zero_()
        for chosen, by in ((0, 1.0), (1, -2.0)):
            router.layers[0].bias.copy_(torch.eye(2)[chosen])
            single = adapted("LoRA r=2 alpha=3 on q,v", "llama", by)
            torch.testing.assert_close(mixed(**inputs).logits, single(**inputs).logits)
        assert not torch.equal(mixed(**inputs).logits, model(**inputs).logits)
        pc.save(mixed, tmp_path / "mixed")
        again = pc.load(model, tmp_path / "mixed", inputs)
        assert torch.equal(again(**inputs).logits, mixed(**inputs).logits)


def test_every_misfit_of_a_lora_is_told(loras: dict[str, Path], tmp_path: Path) -> None:
    pc.save(adapted("LoRA r=3 alpha=9 on q,k", "llama"), tmp_path / "other")
    mixed = pc.compile(zoo.build("llama"), MIXTURE, zoo.inputs("llama"))
    other = tmp_path / "other"
    with pytest.raises(pc.InterchangeError) as caught:
        pc.fuse(mixed, {"news": other, "sports": loras["news"]})
    path = "model.layers.0.self_attn.{0}_proj.inserted.{1}_lora.{2}"
    down, up = path.format("q", "query", "down"), path.format("v", "value", "up")
    key = path.format("k", "key", "up")
    said = set(caught.value.problems)
    assert said >= {
        "'reviews' is in a mixture, but no folder is given for it",
        "'sports' is given, but in no mixture of this model",
        f"'news' ({other}): its LoRAs are scaled by 3, the mixture's by 1.5; alpha / r says so",
        f"'news' ({other}): {down} has the shape (3, 32), the mixture has (2, 32)",
        f"'news' ({other}): {up} is missing from adapter.safetensors",
        f"'news' ({other}): {key} has no place in the mixture",
    }
