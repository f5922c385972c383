"""The sentence language: what it means, and how its mistakes are shown."""

from textwrap import dedent

import pytest

from peft_compiler.errors import SpecError
from peft_compiler.methods import METHODS, Method
from peft_compiler.spec import Spec
from peft_compiler.spec.read import read_spec

ONE_RULE = {
    "LoRA": {"use": "lora"},
    "LoRA r=16 alpha=32 dropout=0.05 on all linear": {
        "use": {"lora": {"r": 16, "alpha": 32, "dropout": 0.05}},
        "where": {"role": "linear"},
    },
    "lora r=8 on q,k,v,o,up,down of the last 4 layers": {
        "use": {"lora": {"r": 8}},
        "where": {"role": "q,k,v,o,up,down", "layers": "last 4"},
    },
    "adapters width=64 after attention and FFN": {
        "use": {"adapter": {"width": 64}},
        "where": {"role": ["attention", "ffn"]},
    },
    "adapters after FFN in encoder": {"use": "adapter", "where": {"role": "ffn", "tower": "encoder"}},
    "deep prompts length=20 on layers 0-5": {
        "use": {"deep_prompts": {"length": 20}},
        "where": {"layers": "0-5"},
    },
    "deep prompts on every layer": {"use": "deep_prompts"},
    "deep prompts in cross attention": {"use": "deep_prompts", "where": {"attention": "cross"}},
    "lora rank 8 on query and value in vision": {
        "use": {"kind": "lora", "r": 8},
        "where": {"role": ["q", "v"], "tower": "vision"},
    },
    "adapters after ffn of every 2nd layer": {
        "use": "adapter",
        "where": {"role": "ffn", "layers": "every 2nd"},
    },
    "LoRA on q expect 12": {"use": "lora", "where": {"role": "q"}, "expect": 12},
    "lora on q,v except layers 0-1": {"use": "lora", "where": {"role": "q,v", "not": {"layers": "0-1"}}},
    'lora at "model.layers.*.mlp.*"': {"use": "lora", "where": {"path": "model.layers.*.mlp.*"}},
    r'lora at "/layers\.\d+/"': {"use": "lora", "where": {"path": r"/layers\.\d+/"}},
    'lora on q of type "Bert*"': {"use": "lora", "where": {"role": "q", "type": "Bert*"}},
    "lora on (q of layers 0-1) or (v in the decoder except the last layer)": {
        "use": "lora",
        "where": {
            "or": [
                {"role": "q", "layers": "0-1"},
                {"role": "v", "tower": "decoder", "not": {"layers": "last 1"}},
            ]
        },
    },
    "lora on (q, v) of (the last 6 layers) and (every 2nd layer)": {
        "use": "lora",
        "where": {"role": "q,v", "and": [{"layers": "last 6"}, {"layers": "every 2nd"}]},
    },
    "LORA ON Queries, Keys AND Values OF Layers 0, 2 to 3": {
        "use": "lora",
        "where": {"role": "q,k,v", "layers": "0, 2-3"},
    },
    "adapter on attention and feed forward layers": {"use": "adapter", "where": {"role": "attention, ffn"}},
    "lora on attention.query": {"use": "lora", "where": {"role": "attention.query"}},
    "adapter after cross attention": {"use": "adapter", "where": {"role": "attention", "attention": "cross"}},
    "adapters of width 64 and activation gelu after FFN": {
        "use": {"adapter": {"width": 64, "activation": "gelu"}},
        "where": {"role": "ffn"},
    },
    "LoRA with r=4, alpha 8": {"use": {"lora": {"r": 4, "alpha": 8}}},
    "adapter activation=gelu, width=3": {"use": {"adapter": {"activation": "gelu", "width": 3}}},
}


@pytest.mark.parametrize("sentence", ONE_RULE)
def test_a_sentence_is_the_same_spec_as_a_dict(sentence: str) -> None:
    assert read_spec(sentence) == read_spec({"rules": [ONE_RULE[sentence]]})


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_every_method_is_spoken_of_by_each_of_its_names_and_fields(method: type[Method]) -> None:
    for name in method.spoken:
        [one, several] = read_spec(f"{name}; {name.upper()}s").rules
        assert type(one.use) is type(several.use) is method
    for word, field in method.spoken_fields.items():
        rule = read_spec(f"{method.spoken[0]} {word} 4").rules[0]
        assert getattr(rule.use, field) == 4


def test_rules_are_separated_by_semicolons_and_lines() -> None:
    rules = read_spec("LoRA r=8 on q,v; adapters after FFN; deep prompts on every layer").rules
    assert [rule.use.kind for rule in rules] == ["lora", "adapter", "deep_prompts"]
    text = """
        # what is trained
        LoRA r=8 on q,v;;  # a comment; with a semicolon
        adapters after FFN
        deep prompts on every layer;
    """
    assert read_spec(text).rules == rules


def test_parts_to_train() -> None:
    expected = Spec(train=("head", "norm", "pooler.*"))
    assert read_spec('train head; train the norms and "pooler.*"') == expected


def test_a_quote_protects_separators_and_comment_signs() -> None:
    assert read_spec('lora at "a;b#c\\"d"').rules[0].where.path == 'a;b#c"d'


WRONG = {
    "": "found neither rules nor parts to train; a spec needs one,"
    " such as `LoRA on q,v` or `rules: [{use: lora}]`",
    "LoRA on qq,v": """
        found 'qq', expected a place, such as `q,v`, `all linear`, `the last 4 layers`, `encoder`, \
`cross attention` or a path in quotes like `"model.layers.*"`; did you mean 'q'?
          LoRA on qq,v
                  ^^""",
    "LoRA on q and valu": """
        found 'valu', expected a role such as q, v, ffn or linear; did you mean 'value'?
          LoRA on q and valu
                        ^^^^""",
    "lora on": """
        found the end, expected a place, such as `q,v`, `all linear`, `the last 4 layers`, `encoder`, \
`cross attention` or a path in quotes like `"model.layers.*"`
          lora on
                 ^""",
    'lora at "a.b': """
        found a quote that is never closed; close it with `"`
          lora at "a.b
                  ^""",
    "LoRA on q,v and adapters after FFN": """
        found 'adapters' within a rule; write `;` before it to begin another
          LoRA on q,v and adapters after FFN
                          ^^^^^^^^""",
    "lora rnak 8": """
        found 'rnak', expected a setting (r, alpha, dropout, rank_stabilised, bias, init, freeze_a, \
rank), `on`, `after`, `of`, `in`, `at`, \
`except`, `expect` or the end; did you mean 'rank'?
          lora rnak 8
               ^^^^""",
    "lora r=8 rank=9": """
        found 'rank' twice in one rule; keep one
          lora r=8 rank=9
                   ^^^^""",
    "lora on q of layers 0-1 in layers 3": """
        found a second choice of `layers`; join both with `,`, or write `(...) and (...)`
          lora on q of layers 0-1 in layers 3
                                     ^^^^^^^^""",
    "lora on q of layers 5-2": """
        found layers '5-2', which end before they begin; write '2-5'
          lora on q of layers 5-2
                       ^^^^^^^^^^""",
    "lora r=0": """
        'r' is 0, expected greater than 0
          lora r=0
                 ^""",
    "adapter r=8": """
        unknown key 'r', expected width, activation, init, layer_norm or rank
          adapter r=8
                  ^""",
    "train query": """
        found 'query', which no copy can replace; expected embedding, head or norm, or a path
          train query
                ^^^^^""",
}


@pytest.mark.parametrize("sentence", WRONG)
def test_a_mistake_is_shown_in_the_sentence(sentence: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_spec(sentence)
    expected = dedent(WRONG[sentence].removeprefix("\n"))
    assert list(caught.value.problems) == [expected]


def test_a_misspelt_method_of_two_words_is_recognised() -> None:
    with pytest.raises(SpecError, match=r"found 'deep promts', .*; did you mean 'deep prompt'\?"):
        read_spec("deep promts on every layer")


def test_every_rule_reports_its_own_mistake() -> None:
    with pytest.raises(SpecError) as caught:
        read_spec("lora dropout=1.5; adaptors after FFN\nlora on qurey\n\tadapter width=-1")
    problems = caught.value.problems
    assert [problem.split("\n")[0].split(",")[0] for problem in problems] == [
        "'dropout' is 1.5",
        "found 'adaptors'",
        "found 'qurey'",
        "'width' is -1",
    ]
    assert problems[3].split("\n")[1:] == ["  \tadapter width=-1", "  \t              ^^"]


@pytest.mark.parametrize("depth", [50, 5000])
def test_nesting_is_bounded_by_an_error(depth: int) -> None:
    sentence = "lora on " + "(" * depth + "q" + ")" * depth
    if depth == 50:
        assert read_spec(sentence) == read_spec("lora on q")
        return
    with pytest.raises(SpecError, match="found too many parts within parts"):
        read_spec(sentence)


def test_a_long_sentence_is_shown_in_part() -> None:
    sentence = "lora on q; " * 1000 + "lora on zz; " + "lora on q; " * 1000
    with pytest.raises(SpecError) as caught:
        read_spec(sentence)
    _, line, caret = caught.value.problems[0].split("\n")
    assert len(line) < 110
    assert line[caret.index("^") :].startswith("zz;")


def test_a_type_of_numbers_is_said_once_and_is_one() -> None:
    assert read_spec("lora; dtype float32").dtype == "float32"
    with pytest.raises(SpecError) as caught:
        read_spec("dtype float32; lora; dtype bfloat16")
    assert "found a second `dtype`; all that is inserted has one, keep one" in str(caught.value)
    with pytest.raises(SpecError) as caught:
        read_spec("lora; dtype float8")
    assert str(caught.value) == (
        "the sentence is not a valid spec\n"
        "  'dtype' is 'float8', expected 'float32', 'bfloat16' or 'float16'; did you mean 'float32'?\n"
        "    lora; dtype float8\n"
        "                ^^^^^^"
    )
