"""The model types of the installed transformers, and the class that stands for each."""

from dataclasses import dataclass

import transformers
from transformers.models.auto import modeling_auto

LANGUAGE = frozenset({"causal", "masked", "seq2seq"})
"""Kinds that count as language models."""

_FIRST = {
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES": "seq2seq",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES": "speech",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES": "multimodal",
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES": "masked",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": "causal",
    "MODEL_FOR_CTC_MAPPING_NAMES": "speech",
    "MODEL_MAPPING_NAMES": "",
}
"""Where a class is looked for first, and what kind of model that makes it; the empty kind: by its input."""

_BY_INPUT = {
    "input_ids": "text",
    "pixel_values": "vision",
    "pixel_values_videos": "vision",
    "input_features": "speech",
    "input_values": "speech",
}


@dataclass(frozen=True, slots=True)
class Target:
    """A model type and what stands for it.

    Attributes:
        model_type: What its config calls it.
        kind: What kind of model it is.
        class_name: The class in transformers.
    """

    model_type: str
    kind: str
    class_name: str

    @property
    def model_class(self) -> type:
        """The class itself; imports its module."""
        return getattr(transformers, self.class_name)

    @property
    def known_kind(self) -> str:
        """The kind; told by the class's main input where only a bare model is there."""
        return self.kind or _BY_INPUT.get(self.model_class.main_input_name, "other")


def all_targets() -> dict[str, Target]:
    """Returns a target for every model type that has a model, sorted by type."""
    others = [name for name in vars(modeling_auto) if name.startswith("MODEL_") and name.endswith("_NAMES")]
    found: dict[str, Target] = {}
    for mapping in dict.fromkeys([*_FIRST, *sorted(others)]):
        for model_type, named in getattr(modeling_auto, mapping).items():
            class_name = named if isinstance(named, str) else named[0]
            found.setdefault(model_type, Target(model_type, _FIRST.get(mapping, ""), class_name))
    return dict(sorted(found.items()))
