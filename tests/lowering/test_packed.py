"""Rows that hold several sequences: what goes by rows refuses them, all else computes what it does apart."""

from typing import Any

import pytest
import torch
from torch import nn

from peft_compiler.compiling import compile
from peft_compiler.errors import LoweringError
from tests import zoo
from tests.test_compiling import stir

LENGTHS = (3, 4)
FITS = "lora r=2 on q; adapters width=4; prefix length=2; llama-adapter length=2; ia3 on k"


def tuned(spec: str) -> nn.Module:
    model = compile(zoo.build("llama"), spec)
    stir(model)
    return model


def packed() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns two sequences in one row, and each in a row of its own."""
    ids = zoo.inputs("llama", 1, sum(LENGTHS))["input_ids"]
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    return {"input_ids": ids, "position_ids": positions}, [
        {"input_ids": each} for each in ids.split(LENGTHS, 1)
    ]


def borders(**arguments: Any) -> dict[str, Any]:
    ends = torch.tensor([0, LENGTHS[0], sum(LENGTHS)])
    return {**arguments, "cu_seq_lens_q": ends, "cu_seq_lens_k": ends}


def test_what_fits_computes_what_it_does_apart() -> None:
    model, (together, apart) = tuned(FITS), packed()
    with torch.no_grad():
        found = model(**together, use_cache=False).logits
        expected = torch.cat([model(**each).logits for each in apart], 1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


PROMPT = "a soft prompt stands once in each row, and a call came with "
ENDS = "the first and last tokens are told by rows"


@pytest.mark.parametrize(
    ("spec", "told", "says"),
    [
        ("prompt length=2", {}, f"{PROMPT}'position_ids' that begin anew within a row, and no mask: a row"),
        ("prompt length=2", borders(), f"{PROMPT}'cu_seq_lens_q': a row holds several"),
        ("loreft r=2 first=1", borders(), f"{ENDS}, and a call came with 'cu_seq_lens_q': a row"),
        ("x-lora r=2 on q", borders(cache=object()), "a mixture of LoRAs runs twice, each time with a cache"),
    ],
)
def test_what_goes_by_rows_refuses_them(spec: str, told: dict[str, Any], says: str) -> None:
    model, (together, _) = tuned(spec), packed()
    with pytest.raises(LoweringError) as error:
        model(**together, **told, use_cache=False)
    assert str(error.value).startswith(says)
    assert str(error.value).endswith("use generate() rather than generate_batch(), and train with padding")


def test_positions_that_begin_anew_in_padding_are_none_of_another_sequence() -> None:
    inputs = zoo.inputs("llama")
    positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    tuned("prompt length=2")(**inputs, position_ids=positions)
