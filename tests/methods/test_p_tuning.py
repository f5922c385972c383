"""What P-tuning promises: pseudo tokens anywhere, an encoder that is dropped, templates that are filled."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import peft_compiler as pc
from peft_compiler.errors import LoweringError, PeftCompilerError, SpecError
from peft_compiler.methods import PTuning
from peft_compiler.spec.read import read_spec
from peft_compiler.spec.write import to_sentence
from peft_compiler.testing.places import examples
from tests import zoo
from tests.test_compiling import main_output, stir

EXAMPLE = examples()["input"]
TEMPLATE = "[P][P] {premise} [P] ? m"
SENTENCE = f'p-tuning template="{TEMPLATE}" width=8'


class Letters:
    """One token for each letter; anything else is nothing."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [ord(letter.lower()) - ord("a") + 3 for letter in text if letter.isalpha()]


def test_the_lstm_is_that_of_the_paper() -> None:
    module = PTuning(length=3, width=4, layers=1).build(
        EXAMPLE.site, EXAMPLE.host, torch.Generator().manual_seed(0)
    )
    lstm, (first, _, second) = module.lstm, module.mlp
    states = []
    for suffix, order in (("", (0, 1, 2)), ("_reverse", (2, 1, 0))):
        h, c, found = torch.zeros(4), torch.zeros(4), {}
        for step in order:
            gates = getattr(lstm, f"weight_ih_l0{suffix}") @ module.embeddings[step]
            gates = gates + getattr(lstm, f"bias_ih_l0{suffix}") + getattr(lstm, f"bias_hh_l0{suffix}")
            i, f, g, o = (gates + getattr(lstm, f"weight_hh_l0{suffix}") @ h).chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            found[step] = h = o.sigmoid() * c.tanh()
        states.append(torch.stack([found[step] for step in range(3)]))
    hidden = torch.relu(torch.cat(states, 1) @ first.weight.T + first.bias)
    torch.testing.assert_close(module(), hidden @ second.weight.T + second.bias)


def by_hand(base: nn.Module, trained: Tensor, ids: Tensor) -> Tensor:
    """Looks up each id, or takes the pseudo token that it stands for."""
    table = base.get_input_embeddings()
    rows = [[trained[i - zoo.VOCABULARY] if i >= zoo.VOCABULARY else table(i) for i in row] for row in ids]
    return torch.stack([torch.stack(row) for row in rows])


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "bert", "t5"])
def test_pseudo_tokens_stand_where_the_template_has_them(name: str) -> None:
    base = zoo.build(name)
    tuned = pc.compile(base, SENTENCE)
    stir(tuned)
    premises = ("abcd", "efgh")
    ids = torch.tensor([pc.template_ids(tuned, Letters(), {"premise": text}) for text in premises])
    v = zoo.VOCABULARY
    assert ids[0].tolist() == [v, v + 1, 3, 4, 5, 6, v + 2, 15]
    (path,) = (i.path for i in pc.plan(base, SENTENCE).insertions)
    others = {"decoder_input_ids": ids[:, 2:5]} if name == "t5" else {}
    with torch.no_grad():
        embeddings = by_hand(base, tuned.get_submodule(path)(), ids)
        expected = main_output(base(inputs_embeds=embeddings, **others))
        torch.testing.assert_close(main_output(tuned(input_ids=ids, **others)), expected)


def test_a_template_generates_and_composes_with_a_prompt_in_front() -> None:
    base = zoo.build("llama")
    for sentence in (f"{SENTENCE}; prompt length=2", f"prompt length=2; {SENTENCE}"):
        tuned = pc.compile(base, sentence)
        stir(tuned)
        ids = torch.tensor([pc.template_ids(tuned, Letters(), {"premise": "ab"})])
        model: nn.Module = tuned.get_submodule("model.inserted")
        with torch.no_grad():
            found = tuned.generate(ids, max_new_tokens=3, do_sample=False, eos_token_id=None)
            embeddings = by_hand(base, model.input_p_tuning(), found[:, :-1])
            embeddings = torch.cat([model.input_prompt()[None], embeddings], 1)
            expected = base(inputs_embeds=embeddings).logits[:, -3:].argmax(-1)
        assert torch.equal(found[:, -3:], expected)


@pytest.mark.parametrize("encoder", ["lstm", "mlp"])
@pytest.mark.parametrize("placing", ["length=4", f'template="{TEMPLATE}"'])
def test_only_the_embeddings_are_saved(encoder: str, placing: str, tmp_path: Path) -> None:
    base = zoo.build("llama")
    tuned = pc.compile(base, f"p-tuning encoder={encoder} {placing}")
    stir(tuned)
    pc.save(tuned, tmp_path / "adapter")
    loaded = pc.load(base, tmp_path / "adapter")
    length = 4 if "length" in placing else 3
    assert sum(p.numel() for p in loaded.parameters() if p.requires_grad) == length * zoo.HIDDEN
    ids = zoo.inputs("llama")["input_ids"]
    if "template" in placing:
        ids = torch.tensor([pc.template_ids(loaded, Letters(), {"premise": "abc"})])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, tuned(ids).logits)


def test_every_promise_is_kept() -> None:
    for sentence in ("p-tuning", SENTENCE):
        report = pc.verify(pc.compile(zoo.build("llama"), sentence.replace(SENTENCE, "p-tuning encoder=mlp")))
        assert report.ok, str(report)


def test_a_text_that_holds_the_sign_means_no_pseudo_token() -> None:
    ids = PTuning(template="[P]{x}").encode(Letters(), 99, {"x": "a[P]b"})
    assert ids == [99, 3, 18, 4]


def test_a_model_without_embeddings_takes_no_template() -> None:
    with pytest.raises(
        LoweringError,
        match="the forward takes no 'inputs_embeds' that could stand for pseudo tokens; leave out",
    ):
        pc.compile(zoo.build("handmade"), SENTENCE)


def test_what_does_not_fill_the_template_is_refused() -> None:
    tuned = pc.compile(zoo.build("llama"), SENTENCE)
    with pytest.raises(PeftCompilerError, match="the template takes premise; found hypothesis"):
        pc.template_ids(tuned, Letters(), {"hypothesis": "a"})
    with pytest.raises(PeftCompilerError, match="this LlamaForCausalLM was compiled without a template"):
        pc.template_ids(pc.compile(zoo.build("llama"), "p-tuning"), Letters(), {})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": 0}, "greater than 0"),
        ({"template": "{x} ?"}, r"found no \[P\] in the template; expected one for each pseudo token"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read_spec({"rules": [{"use": {"p_tuning": settings}}]})


@pytest.mark.parametrize(
    ("method", "problem"),
    [
        (
            PTuning(template="[P]", length=2),
            "length=2 is not that of the template, which has 1 [P]; leave it out",
        ),
        (PTuning(length=64), "length=64 leaves no room for tokens: the model has 64 positions"),
    ],
)
def test_what_does_not_fit_is_refused(method: PTuning, problem: str) -> None:
    assert list(method.problems(EXAMPLE.site)) == [problem]


def test_it_reads_well_in_sentences() -> None:
    spec = read_spec(f"{SENTENCE} in encoder; p-tuning length=4 encoder=mlp in decoder")
    assert [type(rule.use) for rule in spec.rules] == [PTuning, PTuning]
    assert read_spec(to_sentence(spec)) == spec
