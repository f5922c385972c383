"""The plan as a table and as JSON."""

from collections.abc import Callable

import pytest

from peft_compiler.plan import is_inserted
from peft_compiler.planning import make_plan
from peft_compiler.site import Site
from peft_compiler.spec.read import read_spec
from tests.sites import decoder, encoder_decoder, fused

PLANS = {
    "decoder": (
        "LoRA r=8 on q,v; adapters after FFN; deep prompts on every layer; train head, norms",
        decoder(),
    ),
    "encoder_decoder": (
        "LoRA r=16 alpha=32 dropout=0.05 on all linear; adapters after attention of every 2nd layer; "
        "deep prompts in any attention",
        encoder_decoder(),
    ),
    "fused": ("LoRA r=4", fused()),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_is_a_table(name: str, golden: Callable[[str, str], None]) -> None:
    sentence, sites = PLANS[name]
    table = str(make_plan(read_spec(sentence), sites, base_parameters=1_234_567))
    assert max(map(len, table.splitlines())) <= 110
    golden(f"plan_{name}.txt", table)


def test_a_plan_is_json(golden: Callable[[str, str], None]) -> None:
    sites: tuple[Site, ...] = fused()[:2]
    golden("plan_fused.json", make_plan(read_spec("LoRA r=4 expect 2"), sites, 1_000).to_json())


def test_inserted_names_are_told_by_component() -> None:
    assert is_inserted("layers.0.inserted.query_lora.down")
    assert not is_inserted("layers.0.inserted_norm.weight")
