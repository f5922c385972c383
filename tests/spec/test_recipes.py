"""A recipe stands for its rules and for the parts that it trains, wherever a spec may be written."""

from typing import Any

import pytest

from peft_compiler.errors import SpecError
from peft_compiler.methods import METHODS
from peft_compiler.spec import Spec
from peft_compiler.spec.read import read_spec
from peft_compiler.spec.recipes import FOLDER, recipe_names
from peft_compiler.spec.write import to_sentence, to_yaml


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_what_its_file_holds(name: str) -> None:
    whole = read_spec(FOLDER / f"{name}.yaml")
    assert read_spec({"rules": [{"use": {"recipe": name}}]}) == whole
    if name not in {method.model_fields["kind"].default for method in METHODS} or name in ("ia3", "ssf"):
        assert read_spec(name.upper().replace("_", " ")) == whole


@pytest.mark.parametrize("spelling", ["p-tuning v2", "P_tuning_v2", "p tuning  v2"])
def test_words_may_be_joined_by_anything(spelling: str) -> None:
    assert read_spec(spelling) == read_spec(FOLDER / "p_tuning_v2.yaml")


def test_a_method_whose_name_goes_on_is_meant() -> None:
    assert read_spec("compacter adapters after FFN; compacter") == Spec.model_validate(
        {
            "rules": [{"use": "compacter", "where": {"role": "ffn"}}, {"use": {"compacter": {"n": 4}}}],
            "train": ["norm"],
        }
    )


def test_each_rule_is_narrowed_and_stays_in_its_place() -> None:
    spec = read_spec("LoRA on q; MAM of layers 0-3 in encoder; LoRA on v; houlsby; train head, norm")
    assert spec == Spec.model_validate(
        {
            "rules": [
                {"use": "lora", "where": {"role": "q"}},
                {
                    "use": {"prefix": {"length": 30, "width": 800}},
                    "where": {"and": [{"attention": "any"}, {"layers": "0-3", "tower": "encoder"}]},
                },
                {
                    "use": {"parallel_adapter": {"width": 512, "scale": 4}},
                    "where": {"layers": "0-3", "tower": "encoder"},
                },
                {"use": "lora", "where": {"role": "v"}},
                {"use": "adapter", "where": {"role": "attention, ffn"}},
            ],
            "train": ["head", "norm"],
        }
    )


def test_what_is_written_back_no_longer_names_the_recipe() -> None:
    spec = read_spec("compacter++")
    assert to_sentence(spec) == "compacter adapter after ffn; train norm"
    assert read_spec(to_sentence(spec)) == spec
    assert "recipe" not in to_yaml(spec)


def test_misuses_are_told_at_their_places_with_everything_else() -> None:
    rules: list[dict[str, Any]] = [
        {"use": {"recipe": "mamm"}},
        {"use": {"recipe": "mam", "length": 3}, "expect": 2},
        {"use": {"recipe": "mam"}, "where": {"rol": "q"}},
        {"use": {"lora": {"rnk": 3}}},
    ]
    with pytest.raises(SpecError) as caught:
        read_spec({"rules": rules})
    unknown, *others = caught.value.problems
    assert unknown.startswith("rules[0].use.recipe: unknown recipe 'mamm', expected adapter_drop_bert_base, ")
    assert unknown.endswith(" or unipelt; did you mean 'mam'?")
    assert others[:2] == [
        "rules[1].use.length: found 'length' beside a recipe, which has no settings; write its rules instead",
        "rules[1].expect: found 'expect' beside a recipe, which may stand for several rules; leave it out",
    ]
    assert others[2].startswith("rules[2].where.rol: unknown key 'rol', expected role, ")
    assert others[-1].startswith("rules[3].use.lora.rnk: unknown key 'rnk', expected r, ")


@pytest.mark.parametrize(
    ("sentence", "told"),
    [
        (
            "houlsby width=3",
            "found 'width', expected `on`, `after`, `of`, `in`, `at`, `except` or the end\n"
            "  houlsby width=3\n          ^^^^^",
        ),
        (
            "LoRA on q mam",
            "found 'mam' within a rule; write `;` before it to begin another\n"
            "  LoRA on q mam\n            ^^^",
        ),
    ],
)
def test_mistakes_in_a_sentence(sentence: str, told: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_spec(sentence)
    assert caught.value.problems == (told,)


def test_a_misspelt_recipe_is_told_what_it_nearly_names() -> None:
    with pytest.raises(
        SpecError, match=r"a recipe such as houlsby, mam or compacter.*did you mean 'houlsby'\?"
    ):
        read_spec("houlsbi")
