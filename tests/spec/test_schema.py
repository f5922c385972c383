"""The JSON Schema says what the reader accepts."""

import json
from typing import Any

from peft_compiler.methods import METHODS
from peft_compiler.spec import Where
from peft_compiler.spec.schema import json_schema


def references(schema: Any) -> set[str]:
    if isinstance(schema, dict):
        inner = set[str]().union(*map(references, schema.values()))
        return inner | ({schema["$ref"]} if "$ref" in schema else set())
    return set[str]().union(*map(references, schema)) if isinstance(schema, list) else set()


def test_every_method_can_be_written_short_and_long() -> None:
    use = json_schema()["$defs"]["Rule"]["properties"]["use"]["anyOf"]
    kinds = [method.model_fields["kind"].default for method in METHODS]
    assert use[0] == {"enum": kinds}
    assert list(use[1]["properties"]) == kinds
    assert [one["$ref"] for one in use[2:-1]] == [f"#/$defs/{method.__name__}" for method in METHODS]


def test_criteria_are_those_of_the_selector() -> None:
    where = json_schema()["$defs"]["Where"]
    assert set(where["properties"]) == {field.removesuffix("_") for field in Where.model_fields}
    assert where["additionalProperties"] is False
    assert where["properties"]["tower"]["anyOf"][0]["enum"] == [
        "encoder",
        "decoder",
        "text",
        "vision",
        "audio",
    ]


def test_it_is_plain_json_without_dangling_references() -> None:
    schema = json_schema()
    assert json.loads(json.dumps(schema)) == schema
    assert references(schema) <= {f"#/$defs/{name}" for name in schema["$defs"]}
