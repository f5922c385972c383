"""Insertions that several compiled models train together: each model reads the very same parameters.

As for the tasks of P-tuning v2 (Liu et al. 2021, https://arxiv.org/abs/2110.07602, section 3.3),
which are learnt at once by one set of prompts, with a head for each. What the rules of a spec
insert is shared; what it trains of the base, such as a head, stays each model's own.
"""

from collections.abc import Iterator, Mapping

from torch import nn

from peft_compiler.lowering.compilation import compilation_of
from peft_compiler.plan import Insertion, Plan
from peft_compiler.site import Input
from peft_compiler.spec.write import method_sentence

_COMPARED = ("role", "cross", "rows", "widths", "wiring", "parameters")
_MOST_NAMES = 3


def sharing_problems(
    model: nn.Module, plan: Plan, digests: Mapping[str, str], other: nn.Module
) -> Iterator[str]:
    """Yields every reason why what `plan` inserts into `model` cannot be that of the compiled model `other`.

    Args:
        model: The base, not compiled.
        plan: What is to be inserted.
        digests: The digest of each parameter and buffer of `model`, by name.
        other: The model to share with.

    Raises:
        PeftCompilerError: If `other` was not compiled.
    """
    compilation = compilation_of(other)
    theirs = {insertion.path: insertion for insertion in compilation.plan.of_rules}
    if not plan.of_rules:
        yield "nothing would be shared, as the spec has no rules: leave shared_with out"
    for insertion in plan.of_rules:
        partner = theirs.get(insertion.path)
        found = (
            ["the model to share with has no insertion there"]
            if partner is None
            else [
                *_differences(insertion, partner),
                *_other_values(insertion, digests, compilation.weights_digest),
                *_unfit(model, insertion, other),
            ]
        )
        yield from (f"{insertion.path}: {each}" for each in found)


def share(built: Mapping[str, nn.ModuleDict], plan: Plan, other: nn.Module) -> None:
    """Puts the parameters and buffers of `other` in place of those built for the same insertions.

    The modules stay apart, so that one model may train while the other one is evaluated.
    """
    for insertion in plan.of_rules:
        ours, theirs = built[insertion.site.path][insertion.name], other.get_submodule(insertion.path)
        for module, partner in zip(ours.modules(), theirs.modules(), strict=True):
            for tensors in (partner.named_parameters(recurse=False), partner.named_buffers(recurse=False)):
                for name, tensor in tensors:
                    setattr(module, name, tensor)


def _differences(insertion: Insertion, partner: Insertion) -> Iterator[str]:
    """Yields what is not equal in two insertions of one path."""
    if insertion.method != partner.method:
        ours, theirs = (method_sentence(each.method, sizes=True) for each in (insertion, partner))
        yield f"would be '{ours}', the model to share with has '{theirs}'"
        return
    here, there = insertion.describe(), partner.describe()
    for key in _COMPARED:
        if here[key] != there[key]:
            yield f"{key} would be {here[key]}, the model to share with has {there[key]}"


def _other_values(insertion: Insertion, here: Mapping[str, str], there: Mapping[str, str]) -> Iterator[str]:
    """Yields which weights of the host are not those of the other base."""
    path, place = insertion.site.path, insertion.site.place
    prefix = f"{path}." if path else ""
    if isinstance(place, Input):
        # Its host is a whole tower, of which it reads nothing else; one may have a pooler and the other none.
        names = [f"{prefix}{place.table}"]
    else:
        names = sorted(name for name in here.keys() | there.keys() if name.startswith(prefix))
    changed = [name for name in names if here.get(name) != there.get(name)]
    if changed:
        more = f" and {len(changed) - _MOST_NAMES} more" if len(changed) > _MOST_NAMES else ""
        shown = ", ".join(changed[:_MOST_NAMES])
        yield f"the bases differ in {shown}{more}: share between models on one base"


def _unfit(model: nn.Module, insertion: Insertion, other: nn.Module) -> Iterator[str]:
    """Yields why parameters cannot serve here as they are there."""
    parameters = [*other.get_submodule(insertion.path).parameters()]
    here = {tensor.device for tensor in model.get_submodule(insertion.site.path).parameters()}
    for device in {parameter.device for parameter in parameters} - here if here else ():
        yield f"is on {device} in the model to share with, its place here on {', '.join(map(str, here))}"
    if not all(parameter.requires_grad for parameter in parameters):
        yield "is frozen in the model to share with: let it require gradients"
