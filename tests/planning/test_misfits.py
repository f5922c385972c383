"""What does not fit is said once, with what was found and what to do; a list of it all in one error."""

from textwrap import dedent

import pytest

import peft_compiler as pc
from peft_compiler.errors import PlanError
from peft_compiler.planning import make_plan
from peft_compiler.site import Site
from peft_compiler.spec.read import read_spec
from tests import zoo
from tests.sites import decoder, encoder_decoder

DECODER, BOTH = decoder(), encoder_decoder()
FOR_LORA = (
    "this model has 1 embedding, 4 attention.query, 4 attention.key, 4 attention.value, 4 attention.output, "
    "4 feed_forward.up, 4 feed_forward.down, 1 head"
)


def problems_of(sentence: str, sites: tuple[Site, ...]) -> list[str]:
    with pytest.raises(PlanError) as caught:
        make_plan(read_spec(sentence), sites, base_parameters=1)
    assert str(caught.value).startswith("the spec does not fit this model\n  ")
    return list(caught.value.problems)


MISFITS = {
    "lora on q in cross attention": f"""
        rule 1 (lora) finds no place
          places left: 26 for lora, 4 of role q, 0 in cross attention
          {FOR_LORA}""",
    "lora on gate": f"""
        rule 1 (lora) names gate, of which this model has none
          {FOR_LORA}""",
    "adapter after q": """
        rule 1 (adapter) names q, where adapter cannot stand
          it attaches to attention, block, feed_forward or mixer""",
    "lora on q in vision": """
        rule 1 (lora) names tower vision, which this model lacks
          it has no towers to choose from""",
    "lora on q of layers 2-9": """
        rule 1 (lora) names layers 2-9, out of range
          the model has layers 0-3""",
    "lora on q of the last 5 layers": """
        rule 1 (lora) names layers last 5, out of range
          the model has layers 0-3""",
    "lora on q,v expect 24": """
        rule 1 (lora) expects 24 sites, found 8
          4 of role attention.query, 4 of role attention.value
          write `expect: 8` if that is meant""",
    "lora r=100 on q,v": """
        rule 1 (lora): r=100 exceeds the rank of a 64 x 64 weight: take r <= 64
          at 'model.layers.0.attention.q_proj' (attention.query) and 7 other places""",
    'lora at "attention"': f"""
        rule 1 (lora) finds no place
          places left: 26 for lora, 0 at "attention"
          no place is at "attention"; did you mean "**.attention"?
          {FOR_LORA}""",
    'lora at "model.layer.*.mpl"': f"""
        rule 1 (lora) finds no place
          places left: 26 for lora, 0 at "model.layer.*.mpl"
          no place is at "model.layer.*.mpl"; did you mean "model.layers.*.mlp"?
          {FOR_LORA}""",
    'train "lm_haed"': """
        `train lm_haed` finds no place
          places left: 6 for trained copy, 0 at "lm_haed"
          no place is at "lm_haed"; did you mean "lm_head"?
          this model has 1 embedding, 4 norm, 1 head""",
    'train "noram"': """
        `train noram` finds no place
          places left: 6 for trained copy, 0 at "noram"
          no place is at "noram"; did you mean "**.norm"?
          this model has 1 embedding, 4 norm, 1 head""",
    'train "haed"': """
        `train haed` finds no place
          places left: 6 for trained copy, 0 at "haed"
          no place is at "haed"; did you mean 'head'?
          this model has 1 embedding, 4 norm, 1 head""",
    "lora on q, k except layers 2 in encoder": """
        rule 1 (lora) names tower encoder, which this model lacks
          it has no towers to choose from""",
    'lora on q except "model.layers.7"': """
        rule 1 (lora) excludes nothing by `except "model.layers.7"`; leave it out or mend it
          no place is at "model.layers.7"; there is, for example, "model.layers.3.norm\"""",
    "lora on (q of layers 0) or (up in self attention)": """
        rule 1 (lora) selects nothing in (up in self attention); leave it out or mend it""",
    'lora on q, up of type "Linear" in self attention': """
        rule 1 (lora) selects no up with its other criteria; leave up out or widen them""",
    "lora on q; lora on layers 0-1": """
        rule 1 (lora) and rule 2 (lora) share 2 places, where one method can stand only once
          'model.layers.0.attention.q_proj' (attention.query), \
'model.layers.1.attention.q_proj' (attention.query)
          keep them apart by `where`, or drop one""",
    'train head, "lm_head"': """
        `train head` and `train lm_head` share 1 place, where one method can stand only once
          'lm_head' (head)
          keep them apart by `where`, or drop one""",
    "lora on head, q; train head": """
        rule 1 (lora) changes what `train head` trains whole
          'lm_head' (head)
          keep them apart by `where`, or drop one""",
}


@pytest.mark.parametrize("sentence", MISFITS)
def test_a_misfit_is_explained(sentence: str) -> None:
    assert problems_of(sentence, DECODER) == [dedent(MISFITS[sentence].removeprefix("\n"))]


def test_an_expectation_is_compared_tower_by_tower() -> None:
    assert problems_of("adapters after FFN expect 6", BOTH) == [
        "rule 1 (adapter) expects 6 sites, found 10\n"
        "  6 in the encoder tower, 4 in the decoder tower\n"
        "  narrow it by `tower: encoder`, or write `expect: 10` if that is meant"
    ]


def test_a_range_counts_where_one_tower_has_it() -> None:
    assert len(make_plan(read_spec("lora on q of layers 3-5"), BOTH, 1).insertions) == 3 + 2
    assert problems_of("lora on q of layers 3-5 in decoder", BOTH) == [
        "rule 1 (lora) names layers 3-5, out of range\n  the decoder tower has layers 0-3"
    ]


def test_a_model_without_any_place() -> None:
    assert problems_of("lora", ()) == [
        "rule 1 (lora) finds no place\n"
        "  places left: 0 for lora\n"
        "  no place of any role was found in this model"
    ]


def test_a_model_without_attention() -> None:
    norms = tuple(site for site in DECODER if site.role == "norm")
    assert problems_of("deep prompts", norms) == [
        "rule 1 (deep_prompts) finds no place\n  places left: 0 for deep prompt\n  this model has 4 norm"
    ]


def test_all_problems_of_all_rules_come_in_one_error() -> None:
    sentence = "lora on gate; adapters after q; lora on q of layers 9; lora on k expect 3; adapters; adapters"
    starts = [problem.split("\n")[0] for problem in problems_of(sentence, DECODER)]
    assert starts == [
        "rule 1 (lora) names gate, of which this model has none",
        "rule 2 (adapter) names q, where adapter cannot stand",
        "rule 3 (lora) names layers 9, out of range",
        "rule 4 (lora) expects 3 sites, found 4",
        "rule 5 (adapter) and rule 6 (adapter) share 4 places, where one method can stand only once",
    ]


def test_a_tower_that_the_example_does_not_reach_may_be_there_all_the_same() -> None:
    with pytest.raises(pc.PlanError) as caught:
        pc.plan(zoo.build("llama"), "lora on q in vision")
    assert (
        "rule 1 (lora) names tower vision, which this model lacks\n"
        "    its towers are text; pass example inputs that reach another, such as images, sound or tokens "
        "of the decoder"
    ) in str(caught.value)
