"""Why names and dataflow differ, for each type where they do: read one by one in the models' code."""

from collections.abc import Mapping

_NO_PRODUCT = (
    "no softmax over all keys: attention is approximated, by blocks or by hashes, so no role is claimed"
)
_NOT_ROTATED = (
    "names mislead: in a layer without rotary positions, no part of the keys goes from `kv_a_proj_with_mqa` "
    "around `kv_b_proj`"
)
_LARGE = (
    "open: in the first blocks, one projection of 2,048 windows of the image is larger than what rows are "
    "followed through, so which of its rows are queries is unknown"
)

EXPLAINED: Mapping[str, str] = {
    "dbrx": (
        "open: the experts lie one below the other in one matrix; the layer is found, but no place is known "
        "for a part of a matrix that is chosen while it runs"
    ),
    "deepseek_v4": (
        "open: a compressor makes one more key of each window; in an example of one window at most, a part "
        "of its rows is not used"
    ),
    "diffusion_gemma": "names mislead: where there is no `v_proj`, `k_proj` makes the values too",
    "glm5_next": _NOT_ROTATED,
    "glm5_next_text": _NOT_ROTATED,
    "groupvit": (
        "names mislead: in `assign` the softmax runs over the groups, which are called queries; the other "
        "MLPs mix tokens or project groups"
    ),
    "higgs_audio_v2": "open: two MLPs add in place, each to tokens of its kind; the second one is not found",
    "mistral_large4": _NOT_ROTATED,
    "mistral_large4_text": _NOT_ROTATED,
    "mra": _NO_PRODUCT,
    "sam2": _LARGE,
    "sam2_hiera_det_model": _LARGE,
    "sam2_vision_model": _LARGE,
    "swiftformer": "additive attention: queries meet no keys in a product, so nothing is their output",
    "yoso": _NO_PRODUCT,
}
