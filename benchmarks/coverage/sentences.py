"""Which sentence a model is tried with: one for all that attend, what applies for the others."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from peft_compiler.methods import DeepPrompts
from peft_compiler.site import Role, Site

PROJECTIONS_RULE = "LoRA r=8 on q,v"
FEED_FORWARD_RULE = "adapters after FFN"
PROMPTS_RULE = "deep prompts on every layer"
WHOLE = f"{PROJECTIONS_RULE}; {FEED_FORWARD_RULE}; {PROMPTS_RULE}"

_INSTEAD_OF_ATTENTION = (
    ("LoRA r=8 on mixer", (Role.MIXER_INPUT, Role.MIXER_OUTPUT)),
    ("LoRA r=8 on up,down", (Role.UP, Role.DOWN)),
    ("LoRA r=8 on linear", (Role.UP, Role.DOWN, Role.MIXER_INPUT, Role.MIXER_OUTPUT)),
    ("LoRA r=8 on head", (Role.HEAD,)),
)


@dataclass(frozen=True, slots=True)
class Sentence:
    """What is asked of a model.

    Attributes:
        rules: The rules, each a sentence of its own.
        attention: Whether the model attends: by what was found, or by the names of its parameters.
        does_not_apply: What of the whole sentence has no meaning for the model, and why.
    """

    rules: tuple[str, ...]
    attention: bool
    does_not_apply: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether all of the whole sentence is asked."""
        return len(self.rules) == len(WHOLE.split("; "))

    @property
    def text(self) -> str:
        """All rules together."""
        return "; ".join(self.rules)


def sentence_for(sites: Iterable[Site], named: Mapping[str, int]) -> Sentence:
    """Returns the sentence for a model with these sites, and these counts of roles told by names."""
    sites = tuple(sites)
    roles = {site.role for site in sites}
    if Role.ATTENTION_CORE in roles or (named["q"] and named["k"] and named["v"]):
        return _of_attention(sites, roles, named)
    reasons = ["no attention: LoRA on q,v and deep prompts do not apply"]
    rules = [rule for rule, needed in _INSTEAD_OF_ATTENTION if roles.issuperset(needed)][:1]
    rules = rules or [rule for rule, needed in _INSTEAD_OF_ATTENTION if roles.intersection(needed)][-1:]
    if Role.FEED_FORWARD in roles:
        rules.append(FEED_FORWARD_RULE)
    elif Role.MIXER in roles:
        rules.append("adapters after mixer")
        reasons.append("no feed-forward layer: adapters stand after the mixer")
    else:
        reasons.append("no feed-forward layer: adapters do not apply")
    return Sentence(tuple(rules), attention=False, does_not_apply=tuple(reasons))


def _of_attention(sites: tuple[Site, ...], roles: set[Role], named: Mapping[str, int]) -> Sentence:
    prompts = _prompts_rule(sites)
    if Role.FEED_FORWARD in roles or named["up"] or named["down"]:
        return Sentence((PROJECTIONS_RULE, FEED_FORWARD_RULE, prompts), attention=True)
    reason = "no feed-forward layer was found, and no name tells of one: adapters do not apply"
    return Sentence((PROJECTIONS_RULE, prompts), attention=True, does_not_apply=(reason,))


def _prompts_rule(sites: tuple[Site, ...]) -> str:
    """Returns the rule for prompts; shorter ones where a tower has fewer positions than they are long."""
    positions = [site.positions for site in sites if site.role is Role.ATTENTION_CORE and site.positions]
    fewest = min(positions, default=DeepPrompts().length)
    if fewest >= DeepPrompts().length:
        return PROMPTS_RULE
    return PROMPTS_RULE.replace("prompts", f"prompts length={max(1, fewest // 2)}")
