"""How many places a selector means, on sites written by hand."""

from dataclasses import replace

import pytest

from peft_compiler.spec.read import read_spec
from peft_compiler.spec.select import depths_of, selected
from tests.sites import decoder, encoder_decoder

DECODER, BOTH = decoder(), encoder_decoder()

CHOICES = {
    "lora": (BOTH, 28),
    "lora on q": (BOTH, 14),
    "lora on q in self attention": (BOTH, 10),
    "lora on q in cross attention": (BOTH, 4),
    "lora on cross attention": (BOTH, 16),
    "lora on ffn": (BOTH, 20),
    "lora on all linear": (BOTH, 6 * 6 + 4 * 10),
    "adapter": (BOTH, 10),
    "adapter after attention and ffn": (BOTH, 24),
    "adapter after cross attention": (BOTH, 4),
    "deep prompt": (BOTH, 10),
    "deep prompt in any attention": (BOTH, 14),
    "deep prompt in cross attention": (BOTH, 4),
    "lora on q in decoder": (BOTH, 8),
    "lora on q of the last 2 layers": (BOTH, 6),
    "lora on q of every 2nd layer in encoder": (BOTH, 3),
    "lora on q except layers 0-1": (BOTH, 8),
    "lora on q,v except q of layers 0": (BOTH, 25),
    'lora at "encoder.layers.0"': (BOTH, 6),
    'lora at "**.mlp"': (BOTH, 20),
    'lora at "encoder.*.mlp"': (BOTH, 0),
    'lora on up at "/layers.[12]/"': (BOTH, 4),
    'adapter of type "Bl?ck"': (BOTH, 24),
    "lora on (q of layers 0) or (up)": (BOTH, 13),
    "lora on up of (the first 3 layers) and (every 2nd layer)": (BOTH, 2),
    'lora at "**"': (DECODER, 4 * 6 + 2),
    "lora on embedding, head": (DECODER, 2),
    "trained copy on norm": (DECODER, 4),
}


@pytest.mark.parametrize("sentence", CHOICES)
def test_a_selector_means_so_many_places(sentence: str) -> None:
    sites, expected = CHOICES[sentence]
    assert len(selected(read_spec(sentence).rules[0], sites, depths_of(sites))) == expected


def test_a_module_with_two_places_is_replaced_once() -> None:
    norms = tuple(site for site in DECODER if site.role == "norm")
    twice = (*norms, *(replace(norm, evidence=("used again",)) for norm in norms))
    assert selected(read_spec("trained copy on norm").rules[0], twice, depths_of(twice)) == norms
