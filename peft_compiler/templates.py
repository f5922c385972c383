"""Texts in the template of a P-tuned model, as token ids."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from peft_compiler.errors import PeftCompilerError
from peft_compiler.lowering.compilation import compilation_of
from peft_compiler.methods import PTuning


def template_ids(tuned: nn.Module, tokenizer: Any, texts: Mapping[str, str]) -> list[int]:
    """Returns the token ids of the template that `tuned` was compiled with, filled with `texts`.

    Pseudo tokens have ids beyond the vocabulary, which the compiled model knows. Special
    tokens, such as `[CLS]` and `[MASK]`, are those that the template spells.

    Args:
        tuned: A compiled model.
        tokenizer: Has `encode` as those of transformers do.
        texts: What to put in place of each `{name}`.

    Raises:
        PeftCompilerError: If it is not a compiled model, has no template, or another text is needed.
    """
    insertions = compilation_of(tuned).plan.insertions
    found = [(each.method, each.site) for each in insertions if isinstance(each.method, PTuning)]
    filled = [(method, site) for method, site in found if method.template is not None]
    if not filled:
        raise PeftCompilerError(
            f"this {type(tuned).__name__} was compiled without a template",
            ['give it one: `p-tuning template="[P][P] {text} [P]"`'],
        )
    [(method, site), *_] = filled
    if set(texts) != set(method.names):
        expected = ", ".join(sorted(method.names)) or "no text"
        raise PeftCompilerError(
            f"the template takes {expected}; found {', '.join(sorted(texts)) or 'none'}",
            [f"it is {method.template!r}"],
        )
    return method.encode(tokenizer, site.width_in, texts)
