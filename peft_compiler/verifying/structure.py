"""Promises that are kept or broken without running the model."""

from collections import Counter

from peft_compiler.lowering.lower import digests_of
from peft_compiler.plan import is_inserted
from peft_compiler.verifying.subject import BrokenPromiseError, Subject


def only_inserted_parameters_learn(subject: Subject) -> str:
    """Finds parameters that require gradients and are not inserted, and the other way round."""
    parameters = dict(subject.tuned.named_parameters())
    wrong = [name for name, parameter in parameters.items() if parameter.requires_grad != is_inserted(name)]
    if wrong:
        raise BrokenPromiseError(listed("the wrong way round", wrong))
    return f"{sum(map(is_inserted, parameters))} of {len(parameters)} tensors require gradients"


def base_is_as_it_was(subject: Subject) -> str:
    """Compares the digest of each parameter and buffer of the base with that of the compilation."""
    before, now = subject.compilation.weights_digest, digests_of(subject.tuned)
    changed = [name for name in before if now.get(name) != before[name]]
    changed += [name for name in now if name not in before]
    if changed:
        raise BrokenPromiseError(listed("changed since it was compiled", changed))
    return f"{len(before)} tensors, bit for bit"


def count_is_the_formulas(subject: Subject) -> str:
    """Counts the parameters of each insertion."""
    wrong: list[str] = []
    for insertion in subject.compilation.plan.insertions:
        built = sum(
            parameter.numel() for parameter in subject.tuned.get_submodule(insertion.path).parameters()
        )
        promised = insertion.parameters + sum(insertion.shared.values())
        if built != promised:
            wrong.append(f"{insertion.path} has {built:,}, its formula gives {promised:,}")
    if wrong:
        raise BrokenPromiseError(listed("of another size", wrong))
    trainable = sum(parameter.numel() for parameter in subject.tuned.parameters() if parameter.requires_grad)
    if trainable != subject.compilation.plan.trainable:
        planned = subject.compilation.plan.trainable
        raise BrokenPromiseError(f"{trainable:,} parameters require gradients, the plan has {planned:,}")
    return f"{trainable:,} parameters"


def every_rule_is_bound(subject: Subject) -> str:
    """Counts the insertions of each rule."""
    plan = subject.compilation.plan
    bound = Counter(insertion.rule for insertion in plan.insertions)
    wrong = [
        f"rule {index + 1} has {bound[index]} sites, expected {rule.expect or 'at least one'}"
        for index, rule in enumerate(plan.spec.rules)
        if not bound[index] or rule.expect not in (None, bound[index])
    ]
    if wrong:
        raise BrokenPromiseError("; ".join(wrong))
    return f"{sum(bound.values())} insertions of {len(bound)} rules"


def listed(what: str, names: list[str]) -> str:
    """Returns a line on `names`, of which it shows the first three."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} {what}: {', '.join(names[:3])}{more}"
