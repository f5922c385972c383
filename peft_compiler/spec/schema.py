"""JSON Schema of a spec file, for editors."""

from collections.abc import Mapping
from typing import Any

from pydantic.json_schema import models_json_schema

from peft_compiler.methods import TrainedCopy
from peft_compiler.registering import kind_of, known_methods
from peft_compiler.site import Tower
from peft_compiler.spec.recipes import recipe_names
from peft_compiler.spec.spec import Spec, Where
from peft_compiler.spec.terms import ALSO_CALLED, TERMS

JsonSchema = dict[str, Any]


def json_schema() -> JsonSchema:
    """Returns the schema of what a YAML or JSON file may hold, the short forms included."""
    schema = Spec.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "peft_compiler spec"
    methods = known_methods()
    references, shared = models_json_schema([(method, "validation") for method in methods])
    definitions = schema["$defs"] | shared["$defs"]
    schema["$defs"] = definitions
    for name, definition in definitions.items():
        definitions[name] = _one_paragraph(definition)
    definitions["Rule"]["properties"]["use"] = _use(
        {kind_of(method): references[method, "validation"] for method in methods}
    )
    definitions["Where"]["properties"] |= _criteria()
    trained = [term for term, roles in TERMS.items() if not roles.isdisjoint(TrainedCopy.attaches)]
    schema["properties"]["train"] = _one_or_list({"anyOf": [{"enum": trained}, {"type": "string"}]}) | {
        "description": Spec.model_fields["train"].description
    }
    return schema


def _use(kinds: Mapping[str, JsonSchema]) -> JsonSchema:
    """Returns the schema of a method: `lora`, `{lora: {r: 8}}` or `{kind: lora, r: 8}`."""
    without_kind = {"not": {"required": ["kind"]}}
    settings = {kind: reference | without_kind for kind, reference in kinds.items()}
    nested = {
        "type": "object",
        "properties": {kind: {"anyOf": [inner, {"type": "null"}]} for kind, inner in settings.items()},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    flat = [reference | {"required": ["kind"]} for reference in kinds.values()]
    recipe = {
        "type": "object",
        "properties": {"recipe": {"enum": list(recipe_names())}},
        "required": ["recipe"],
        "additionalProperties": False,
    }
    return {
        "description": "A method and its settings, or a recipe.",
        "anyOf": [{"enum": list(kinds)}, nested, *flat, recipe],
    }


def _criteria() -> JsonSchema:
    """Returns the schemas of the criteria that have more than one spelling."""
    described = {name: field.description for name, field in Where.model_fields.items()}
    roles = {"anyOf": [{"enum": [*TERMS, *ALSO_CALLED]}, {"type": "string"}]}
    examples = ["all", "0-5", "3, 7", "first 2", "last 4", "every 2nd"]
    layers: JsonSchema = {"type": ["integer", "string"], "examples": examples}
    towers = {"enum": list(map(str, Tower))}
    return {
        "role": _one_or_list(roles) | {"description": described["role"]},
        "layers": _one_or_list(layers) | {"description": described["layers"]},
        "tower": _one_or_list(towers) | {"description": described["tower"]},
    }


def _one_or_list(item: JsonSchema) -> JsonSchema:
    return {"anyOf": [item, {"type": "array", "items": item, "minItems": 1}]}


def _one_paragraph(schema: JsonSchema) -> JsonSchema:
    # An editor shows a description beside the word: of a docstring, the first paragraph is for users.
    summary = schema.get("description", "").split("\n\n")[0].replace("\n", " ")
    return schema | {"description": summary}
