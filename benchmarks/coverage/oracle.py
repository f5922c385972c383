"""What well-known parameter names say about roles: a second opinion, of which the package knows nothing."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from peft_compiler.analysis.module_graph import ModuleGraph
from peft_compiler.analysis.roles.linears import find_dataflow
from peft_compiler.site import Projection, Role, Site

COMPARED = ("q", "k", "v", "o", "up", "down")
"""Roles that are compared; a gate counts as up, since names rarely tell the two apart."""

_SHORT = {
    Role.QUERY: "q",
    Role.KEY: "k",
    Role.VALUE: "v",
    Role.ATTENTION_OUTPUT: "o",
    Role.UP: "up",
    Role.GATE: "up",
    Role.DOWN: "down",
}

_EXCLUDED = {
    "part of no attention and no feed-forward layer: chooses keys or experts": (
        r"indexer|router|shared_expert_gate|(mlp|moe|ffn|feed_forward)\.gate(\.|$)"
    ),
    "part of a norm: makes a factor, and adds nothing to a stream": r"norm\.mlp\.",
    "part of a bottleneck or of a hypernetwork beside the layers": r"bottleneck|hypernetworks",
    "linear attention, a state space or a convolution: a mixer": r"linear_attn|mamba|mixer|conv_module",
    "makes biases of positions": r"rel_logits|pos_bias|rel_pos",
    "part of a head": r"pooler|classifier|lm_head|predictions|pointer|scoring",
}
"""Reasons why names that would tell a role are left out, and what such names have in them."""
_NO_KEY = "a query or a value with no key beside it: deformable attention, or scores of a head"
_IN_NO_BLOCK = "two layers outside every list of blocks: a head or an embedding"
_IN_A_BLOCK = re.compile(r"\.\d+\.")
_IN_FEED_FORWARD = re.compile(r"(mlp|ffn|feed_forward|feedforward|experts?)", re.IGNORECASE)
_ATTENTION = re.compile(r"att|cross|mha|EncDec|token_mixer", re.IGNORECASE)
_FEED_FORWARD = re.compile(
    r"mlp|ffn|\bff\b|feed_?forward|intermediate|output|fc\d|fc_|linear\d|expert|lin\d|dense_h|dense_4h|DenseRelu"
    r"|moe|\bwi|\bwo|\bw\d|glu|block_sparse",
    re.IGNORECASE,
)


def _ends(*names: str) -> re.Pattern[str]:
    return re.compile(rf"(^|\.)({'|'.join(names)})$")


_FUSED = {
    "q k v": _ends(
        "c_attn", "query_key_value", "qkv_proj", "Wqkv", "qkv", "in_proj_weight", "att_proj", "to_qkv",
        "wqkv", "W_pack", "qkv_linear", "query_key_value_layer", r"attention\.self\.in_proj",
    ),
    "q k": _ends("query_key"),
    "k v": _ends("kv_b_proj", "kv", "to_kv", "kv_proj", "c_kv", "kv_up_proj"),
    "k": _ends("kv_a_proj_with_mqa", "k_pe_proj"),
}  # fmt: skip
_ONE = {
    "q": _ends(
        "q_proj", "query", "q_lin", "wq", "to_q", "query_proj", "q_b_proj", "linear_q", "w_q", "queries", "q",
        "query_layer", "lin_q", "q_linear", "q_up_proj", "wq_b", "q_head", "Wq", r"q_proj\.linear",
        r"query\.conv1d",
    ),
    "k": _ends(
        "k_proj", "key", "k_lin", "wk", "to_k", "key_proj", "linear_k", "w_k", "keys", "k", "lin_k",
        "k_linear", "k_head", "Wk", r"k_proj\.linear", r"key\.conv1d",
    ),
    "v": _ends(
        "v_proj", "value", "v_lin", "wv", "to_v", "value_proj", "linear_v", "w_v", "values", "v", "lin_v",
        "v_linear", "v_head", "Wv", r"v_proj\.linear", r"value\.conv1d",
    ),
}  # fmt: skip
_OUTPUT = _ends(
    "o_proj", "out_proj", "out_lin", "to_out", "linear_out", "wo", "o", "proj", "projection", "c_proj",
    "dense", "output", "out", r"to_out\.0", "o_linear", "proj_out", "Wo", "output_projection", "final_linear",
    "post_proj", "attention_out", r"o_proj\.linear", r"post_attention\.conv1d",
)  # fmt: skip
_DOWN = _ends(
    "down_proj", "fc2", "w2", "wo", "dense_4h_to_h", "lin2", "c_proj", "fc_out", "output_dense", "linear2",
    "w_2", "linear_2", r"output\.dense", "output_linear", "layer_2", "fc_2", r"mlp\.2", r"mlp\.3", "Wo",
    "dense2", "project_out", "proj_out", "out_linear", "lin_2", "w_out", "ffn2", "down", "experts_down",
    "ffn_output",
    "fc3",
)  # fmt: skip
_UP = _ends(
    "up_proj", "gate_proj", "fc1", "w1", "w3", "wi", "wi_0", "wi_1", "gate_up_proj", "dense_h_to_4h", "lin1",
    "c_fc", "fc_in", "intermediate_dense", "linear1", "w_1", "linear_1", r"intermediate\.dense",
    "input_linear", "layer_1", "fc_1", "ffn", r"mlp\.0", "Wi", "dense1", "project_in", "proj_in", "in_linear",
    "lin_1", "w_in", "w12", "ffn1", "up", "gate", "v1", "c_fc2", "c_fc_0", "c_fc_1",
)  # fmt: skip


def roles_by_name(parameter: str) -> frozenset[str]:
    """Returns the roles that a parameter's name tells, in short form; none where it tells nothing."""
    return frozenset() if _reason_to_exclude(parameter) else _roles_told(parameter)


def _reason_to_exclude(parameter: str) -> str | None:
    """Returns why a name that tells a role is not heard, or None where it is."""
    name = re.sub(r"\.weight$", "", parameter)
    roles = _roles_told(parameter)
    if not roles:
        return None
    for reason, pattern in _EXCLUDED.items():
        if re.search(pattern, name):
            return reason
    # Whatever else has two layers, such as a head, stands in no list of blocks.
    return _IN_NO_BLOCK if roles <= {"up", "down"} and not _IN_A_BLOCK.search(name) else None


def _roles_told(parameter: str) -> frozenset[str]:
    name = re.sub(r"\.weight$", "", parameter)
    for roles, pattern in _FUSED.items():
        if pattern.search(name):
            return frozenset(roles.split())
    around = name.rpartition(".")[0].replace("cross_modal", "")
    nearest = around.rpartition(".")[2]
    in_feed_forward = bool(_IN_FEED_FORWARD.search(nearest))
    if not re.search(r"mlp|ffn|feed_forward|experts|gate", name):
        for role, pattern in _ONE.items():
            if pattern.search(name):
                return frozenset({role})
    if _ATTENTION.search(around) and not in_feed_forward:
        return frozenset({"o"}) if _OUTPUT.search(name) else frozenset()
    if _FEED_FORWARD.search(name):
        for role, pattern in (("up", _UP), ("down", _DOWN)):
            if pattern.search(name):
                return frozenset({role})
    return frozenset()


@dataclass(frozen=True, slots=True)
class Comparison:
    """How the roles that were found and those of the names differ, layer numbers left out.

    Attributes:
        named: For each role, how many parameters the names give it.
        found: For each role, how many the sites give it.
        missing: "role: name" of what only the names give it.
        mixer: "role: name" of those that are projections of a mixer, or an output beside such:
            linear attention shares the names.
        wrong: "role: name, by name other role" of what only the sites give it, where the name tells another.
        unnamed: "role: name" of what only the sites give it, where the name tells nothing.
        excluded: "role: name: reason" of what a name tells and the comparison leaves out.
    """

    named: Mapping[str, int]
    found: Mapping[str, int]
    missing: tuple[str, ...]
    mixer: tuple[str, ...]
    wrong: tuple[str, ...]
    unnamed: tuple[str, ...]
    excluded: tuple[str, ...]


def compare(graph: ModuleGraph, sites: Iterable[Site]) -> Comparison:
    """Compares the roles of all parameters by which the run multiplied an activation."""
    used = _used(graph)
    named = _named(set(used.values()))
    found: defaultdict[str, set[str]] = defaultdict(set)
    mixers: set[str] = set()
    for site in sites:
        if isinstance(site.place, Projection):
            name = ".".join(filter(None, (site.path, site.place.weight)))
            first = used.get(name, used.get(site.place.weight, name))
            found[_SHORT.get(site.role, "")].add(first)
            if site.role in (Role.MIXER_INPUT, Role.MIXER_OUTPUT):
                mixers.add(first)
    lacking = [(role, name) for role in COMPARED for name in named[role] - found[role]]
    around_mixers = {_around(name) for role in "qkv" for name in named[role] & mixers}
    linear_attention = [
        (role, name)
        for role, name in lacking
        if role in "qkvo" and (name in mixers or (role == "o" and _around(name) in around_mixers))
    ]
    # A value with no key beside it may be found all the same, and as what its name tells.
    only_found = [
        (role, name)
        for role in COMPARED
        for name in found[role] - named[role]
        if role not in roles_by_name(name)
    ]
    return Comparison(
        named={role: len(named[role]) for role in COMPARED},
        found={role: len(found[role]) for role in COMPARED},
        missing=_told(f"{role}: {_bare(name)}" for role, name in set(lacking) - set(linear_attention)),
        mixer=_told(f"{role}: {_bare(name)}" for role, name in linear_attention),
        wrong=_told(
            f"{role}: {_bare(name)}, by name {'/'.join(sorted(roles_by_name(name)))}"
            for role, name in only_found
            if roles_by_name(name)
        ),
        unnamed=_told(f"{role}: {_bare(name)}" for role, name in only_found if not roles_by_name(name)),
        excluded=_told(_excluded(set(used.values()), named, found)),
    )


def _named(names: set[str]) -> dict[str, set[str]]:
    """Returns the names of each role; a query or a value with no key beside it is none of attention's.

    Deformable attention has values and no keys, scores of a head have queries alone.
    """
    named: dict[str, set[str]] = {role: set() for role in COMPARED}
    for name in names:
        for role in roles_by_name(name):
            named[role].add(name)
    with_keys = {_around(name) for name in named["k"]}
    for role in "qv":
        named[role] = {name for name in named[role] if _around(name) in with_keys}
    return named


def _excluded(names: set[str], named: Mapping[str, set[str]], found: Mapping[str, set[str]]) -> Iterable[str]:
    """Yields what names tell and nothing bears out, with the reason why it does not count as missing."""
    for name in names:
        reason = _reason_to_exclude(name) or _NO_KEY
        for role in _roles_told(name):
            if name not in named[role] | found[role]:
                yield f"{role}: {_bare(name)}: {reason}"


def _around(name: str) -> str:
    return re.sub(r"(\.(linear|conv1d))?(\.weight)?$", "", name).rpartition(".")[0]


def _used(graph: ModuleGraph) -> dict[str, str]:
    """Returns the first name of each parameter that a linear applies, by every name that it has."""
    flow = find_dataflow(graph)
    used: dict[str, str] = {}
    for parameter in flow.uses:
        names = graph.parameters[parameter]
        if len(parameter.meta["fact"].shape) > 1:
            used |= dict.fromkeys(names, names[0])
    return used


def _bare(name: str) -> str:
    return re.sub(r"\.\d+(?=\.|$)", ".#", re.sub(r"\.weight$", "", name))


def _told(lines: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(lines)))
