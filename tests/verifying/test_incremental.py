"""Decoding in steps: what each step is given, and models that cannot."""

from typing import Any

import torch
from torch import Tensor, nn

import peft_compiler as pc
from peft_compiler.verifying.incremental import incremental_outputs
from peft_compiler.verifying.outputs import distance

IDS = torch.arange(6).reshape(1, 6)


class Caches(nn.Module):
    """Returns its inputs, which it remembers, and how far in its images each position sees."""

    def __init__(self, breaks: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 4)
        self.up = nn.Linear(4, 8)
        self.down = nn.Linear(8, 4)
        self.breaks = breaks
        self.given: list[dict[str, tuple[int, ...]]] = []

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        image_attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
    ) -> Any:
        masks = {"attention_mask": attention_mask, "image_attention_mask": image_attention_mask}
        self.given.append({name: tuple(mask.shape) for name, mask in masks.items() if mask is not None})
        if self.breaks and past_key_values is not None:
            raise IndexError("list index out of range")
        states = self.embedding(input_ids)
        states = states + self.down(torch.relu(self.up(states)))
        return Result(logits=states, past_key_values=[1] if use_cache else None)


class Result(dict[str, Any]):
    """A dict whose entries are attributes too."""

    __getattr__ = dict.__getitem__


class MakesItsOwnSequence(Caches):
    """An encoder-decoder that decodes from a token of its own."""

    def forward(
        self,
        input_ids: Tensor,
        decoder_input_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
    ) -> Any:
        decoded = input_ids if decoder_input_ids is None else decoder_input_ids
        return super().forward(decoded, past_key_values=past_key_values, use_cache=use_cache)


def test_a_mask_of_other_things_has_the_new_positions_only() -> None:
    model = Caches()
    masks = {"attention_mask": torch.ones(1, 6), "image_attention_mask": torch.ones(1, 6, 2)}
    outputs = incremental_outputs(model, {"input_ids": IDS, **masks})
    assert outputs is not None
    assert distance(*outputs) < 1e-5
    assert model.given[1] == {"attention_mask": (1, 3), "image_attention_mask": (1, 3, 2)}
    assert model.given[-1] == {"attention_mask": (1, 6), "image_attention_mask": (1, 1, 2)}


def test_the_sequence_of_an_encoder_is_not_decoded() -> None:
    inputs = {"input_ids": IDS}
    assert incremental_outputs(MakesItsOwnSequence(), inputs) is None
    assert incremental_outputs(MakesItsOwnSequence(), {**inputs, "decoder_input_ids": IDS}) is not None


def test_a_base_that_cannot_decode_in_steps_breaks_no_promise() -> None:
    report = pc.verify(pc.compile(Caches(breaks=True), "LoRA r=2 on up,down", {"input_ids": IDS}))
    found = {finding.promise: finding for finding in report.findings}
    finding = found["decoding step by step equals decoding at once"]
    assert finding.ok
    assert finding.detail == "the base itself does not decode this example in steps (IndexError)"
