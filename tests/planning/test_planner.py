"""Plans: which insertions, in which order, under which names."""

import json
from dataclasses import replace

from peft_compiler.methods import Adapter, TrainedCopy
from peft_compiler.plan import Plan
from peft_compiler.planning import make_plan
from peft_compiler.site import Role, Site
from peft_compiler.spec.read import read_spec
from tests.sites import HIDDEN, decoder, encoder_decoder, fused

SENTENCE = "LoRA r=8 on q,v; adapters after FFN; deep prompts on every layer; train head"


def planned(sentence: str, sites: tuple[Site, ...]) -> Plan:
    return make_plan(read_spec(sentence), sites, base_parameters=1_000_000)


def paths(plan: Plan) -> list[str]:
    return [insertion.path for insertion in plan.insertions]


def test_insertions_are_in_the_order_of_rules_and_then_of_sites() -> None:
    assert paths(planned(SENTENCE, decoder()))[:3] == [
        "model.layers.0.attention.q_proj.inserted.query_lora",
        "model.layers.0.attention.v_proj.inserted.value_lora",
        "model.layers.1.attention.q_proj.inserted.query_lora",
    ]
    plan = planned(SENTENCE, decoder())
    assert [insertion.rule for insertion in plan.insertions] == [0] * 8 + [1] * 4 + [2] * 4 + [3]
    assert paths(plan)[8] == "model.layers.0.inserted.feed_forward_adapter"
    assert paths(plan)[12] == "model.layers.0.attention.inserted.core_deep_prompts"
    assert paths(plan)[16] == "lm_head.inserted.head_trained_copy"


def test_counts_follow_the_formulas() -> None:
    lora = 8 * 2 * 8 * HIDDEN
    adapters = 4 * (2 * 4 * HIDDEN + 4 + HIDDEN)
    prompts = 4 * 20 * 2 * (16 + 16)
    assert planned(SENTENCE, decoder()).trainable == lora + adapters + prompts + 99 * HIDDEN


def test_equal_inputs_give_equal_plans() -> None:
    one, other = planned(SENTENCE, decoder()), planned(SENTENCE, decoder())
    assert one == other
    assert one.to_json() == other.to_json()
    assert one.digest == other.digest
    assert one.digest != planned(SENTENCE.replace("r=8", "r=4"), decoder()).digest


def test_the_spec_within_a_plan_reads_back() -> None:
    plan = planned(SENTENCE, decoder())
    assert read_spec(json.loads(plan.to_json())["spec"]) == plan.spec


def test_defaults_that_depend_on_the_site_are_filled_in() -> None:
    assert {insertion.method for insertion in planned("adapters", decoder()).insertions} == {
        Adapter(width=HIDDEN // 16)
    }


def test_cross_attention_beside_self_attention_has_names_of_its_own() -> None:
    names = {
        insertion.name for insertion in planned("adapters after attention", encoder_decoder()).insertions
    }
    assert names == {"attention_adapter", "cross_attention_adapter"}
    alone = {insertion.name for insertion in planned("lora on q", encoder_decoder()).insertions}
    assert alone == {"query_lora"}


def test_two_places_of_one_role_in_one_module_are_numbered() -> None:
    [first] = [site for site in decoder() if site.role is Role.FEED_FORWARD and site.layer == 0]
    second = replace(first, evidence=("the second feed-forward branch",))
    assert [one.name for one in planned("adapters", (first, second)).insertions] == [
        "feed_forward_adapter",
        "feed_forward_adapter_2",
    ]


def test_names_do_not_depend_on_other_rules() -> None:
    one, other = planned("lora on q", encoder_decoder()), planned("adapters; lora on q", encoder_decoder())
    assert set(paths(one)) < set(paths(other))
    [first] = [site for site in decoder() if site.role is Role.FEED_FORWARD and site.layer == 0]
    second = replace(first, layer=1)
    [only] = planned("adapters on layers 1", (first, second)).insertions
    assert only.name == "feed_forward_adapter_2"


def test_every_name_is_an_identifier_and_unique_in_its_module() -> None:
    sentence = "lora on all linear; adapters after attention, ffn; deep prompts in any attention; train norm"
    plan = planned(sentence, encoder_decoder())
    assert all(insertion.name.isidentifier() for insertion in plan.insertions)
    assert len(set(paths(plan))) == len(plan.insertions)
    shared = planned("lora on q,v", fused())
    assert [one.name for one in shared.insertions[:2]] == ["query_lora", "value_lora"]


def test_parts_to_train_are_roles_or_paths() -> None:
    plan = planned('train norm and "lm_head", embedding', decoder())
    assert {type(insertion.method) for insertion in plan.insertions} == {TrainedCopy}
    assert [insertion.site.path for insertion in plan.insertions][3:] == [
        "model.layers.3.norm",
        "lm_head",
        "model.embed",
    ]
