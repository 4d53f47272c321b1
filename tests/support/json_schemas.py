"""Random JSON schemas, and whether a value is one of them; what a grammar allows."""

from random import Random
from typing import Any

from pipeline.generation.grammar import GrammarState


def random_schema(random: Random, depth: int = 2) -> dict[str, Any]:
    kinds = ["integer", "boolean", "null", "string", "enum", "anyOf"] + ["array", "object"] * bool(depth)
    match kind := random.choice(kinds):
        case "integer":
            low = random.randrange(-50, 50)
            return {"type": kind, "minimum": low, "maximum": low + random.randrange(200)}
        case "string":
            return {"type": kind, "minLength": 1, "maxLength": random.randrange(1, 6)}
        case "enum":
            return {kind: random.sample(["a", "long word", 7, None, {"x": [1]}, False], 3)}
        case "anyOf":
            return {kind: [random_schema(random, 0), {"type": "boolean"}]}
        case "array":
            return {"type": kind, "items": random_schema(random, depth - 1), "maxItems": 2}
        case "object":
            inner = {name: random_schema(random, depth - 1) for name in random.sample(["a", "b c", "é"], 2)}
            return {
                "type": kind,
                "properties": inner,
                "required": ["a"] * ("a" in inner),
                "additionalProperties": False,
            }
    return {"type": kind}


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value is one of a random schema."""
    if "enum" in schema:
        return any(value == one and type(value) is type(one) for one in schema["enum"])
    if "anyOf" in schema:
        return any(fits(value, one) for one in schema["anyOf"])
    match schema["type"]:
        case "integer":
            return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
        case "string":
            return isinstance(value, str) and 1 <= len(value) <= schema["maxLength"]
        case "array":
            return isinstance(value, list) and len(value) <= 2 and all(fits(one, schema["items"]) for one in value)
        case "object":
            known = isinstance(value, dict) and {*schema["required"]} <= value.keys() <= schema["properties"].keys()
            return known and all(fits(one, schema["properties"][name]) for name, one in value.items())
    return value is None if schema["type"] == "null" else isinstance(value, bool)


def allows(state: GrammarState, token_id: int) -> bool:
    return bool(state.allowed()[token_id // 8] >> token_id % 8 & 1)
