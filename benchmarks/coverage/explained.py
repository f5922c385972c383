"""Why names and dataflow differ, for each type where they do: read one by one in the models' code."""

from collections.abc import Mapping

_CONVOLVED = (
    "open: keys and values are convolved over positions after their projections, so that these are not found"
)
_NO_PRODUCT = "no softmax over all keys: attention is approximated by blocks or hashes, so no role is claimed"
_NOT_ROTATED = (
    "names mislead: in a layer without rotary positions, no part of the keys goes from `kv_a_proj_with_mqa` "
    "around `kv_b_proj`"
)
_INSIDE = (
    "open: experts between a projection into a narrower stream and one out of it; a branch is searched "
    "between the last two projections alone"
)
_ONCE_MORE = (
    "open: the shared block keeps no stream of its own: its output is added through a linear and a mixer, as "
    "part of the mixer's branch"
)

EXPLAINED: Mapping[str, str] = {
    "axk2": "names mislead: an MLP in a norm makes a gate that multiplies; nothing is added to a stream",
    "deepseek_v4": (
        "open: one projection makes the key and the value of a single head, joined with those that a "
        "compressor takes over windows"
    ),
    "diffusion_gemma": "names mislead: where there is no `v_proj`, `k_proj` makes the values too",
    "glm5_next": _NOT_ROTATED,
    "glm5_next_text": _NOT_ROTATED,
    "groupvit": (
        "names mislead: in `assign` the softmax runs over the groups, which are called queries; the other "
        "MLPs mix tokens or project groups"
    ),
    "higgs_audio_v2": "open: two MLPs add in place, each to tokens of its kind; the second one is not found",
    "inkling2": _CONVOLVED,
    "inkling2_text": _CONVOLVED,
    "inkling_mm_model": _CONVOLVED,
    "inkling_text": _CONVOLVED,
    "mistral_large4": _NOT_ROTATED,
    "mistral_large4_text": _NOT_ROTATED,
    "mra": _NO_PRODUCT,
    "muse_spark": _INSIDE,
    "muse_spark_text": _INSIDE,
    "reformer": _NO_PRODUCT,
    "rwkv": "open: a linear attention is a mixer; its inputs are found as such, its `output` is not",
    "swiftformer": "additive attention: queries meet no keys in a product, so nothing is their output",
    "yoso": _NO_PRODUCT,
    "zamba": _ONCE_MORE,
    "zamba2": _ONCE_MORE,
    "zaya": "open: queries and keys are convolved by heads together, and `k_proj` is found for queries",
}
