"""Inputs are derived from what a model says of itself, and are the same every time."""

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from peft_compiler.analysis.inputs import candidate_inputs
from tests.zoo import ALL, build


@pytest.mark.parametrize("name", ALL)
def test_the_first_inputs_run_and_repeat(name: str) -> None:
    model = build(name)
    first, again = next(candidate_inputs(model)), next(candidate_inputs(model))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    with torch.no_grad():
        model(**first)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(5, 3), (2, 7, 5)),
        (nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 2)), (2, 7, 6)),
        (nn.Conv2d(3, 4, 2), (2, 3, 32, 32)),
        (nn.Embedding(9, 4), (2, 7)),
        (nn.TransformerEncoderLayer(8, 2, 16), (2, 7, 8)),
    ],
    ids=["linear", "norm first", "convolution", "embedding", "encoder layer"],
)
def test_plain_modules_run_on_one_of_their_candidates(module: nn.Module, shape: tuple[int, ...]) -> None:
    runs = [candidate for candidate in candidate_inputs(module) if _runs(module, candidate)]
    assert tuple(next(iter(runs[0].values())).shape) == shape


def test_every_required_argument_is_given() -> None:
    model = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
    runs = [candidate for candidate in candidate_inputs(model) if _runs(model, candidate)]
    assert set(runs[0]) == {"src", "tgt"}


class Watcher(nn.Module):
    """Tells the size of its images as that of a crop."""

    main_input_name = "pixel_values"

    def __init__(self) -> None:
        super().__init__()
        self.config = PreTrainedConfig(crop_size=48)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return pixel_values


def test_images_are_as_large_as_their_crop() -> None:
    assert next(candidate_inputs(Watcher()))["pixel_values"].shape[-2:] == (48, 48)


class Forecaster(nn.Module):
    """Tells an encoder and a decoder of times: what is to come is not required, as when generating."""

    def __init__(self) -> None:
        super().__init__()
        self.config = PreTrainedConfig(is_encoder_decoder=True)

    def forward(self, past_values: Tensor, future_values: Tensor | None = None) -> Tensor:
        return past_values if future_values is None else future_values


def test_a_decoder_of_times_is_given_what_it_decodes() -> None:
    assert set(next(candidate_inputs(Forecaster()))) == {"past_values", "future_values"}


def test_the_random_state_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    list(candidate_inputs(build("bert")))
    assert torch.equal(before, torch.random.get_rng_state())


def _runs(module: nn.Module, arguments: dict[str, Tensor]) -> bool:
    try:
        module(**arguments)
    except (AssertionError, RuntimeError, TypeError):
        return False
    return True
