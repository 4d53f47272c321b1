"""/openapi.json: what each route takes and gives, made of the routes and of the structs that bodies are read by."""

import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from pipeline.generation.argument_values import LARGEST_ID, LONGEST_SCOPE, MOST_PRIORITY, MOST_SAMPLES
from pipeline.generation.parameters import (
    HIGHEST_BIAS,
    LOWEST_BIAS,
    MOST_LOGPROBS,
    MOST_STOPS,
    NUMBER_RANGES,
    WHOLE_RANGES,
)
from pipeline.server.bodies import ChatBody, CompletionBody
from pipeline.server.objects import ChatChunk, ChatCompletion, Completion
from pipeline.server.operations import as_json
from pipeline.server.served import served_of
from pipeline.server.tokenize import DetokenizeBody, TokenizeBody

Schema = dict[str, Any]
REFERENCE = "#/components/schemas/{name}"
TAKES = {
    "/v1/chat/completions": ChatBody,
    "/v1/completions": CompletionBody,
    "/tokenize": TokenizeBody,
    "/detokenize": DetokenizeBody,
}
"""What a route reads its body by."""
GIVES: dict[str, dict[str, type | None]] = {
    "/v1/chat/completions": {"application/json": ChatCompletion, "text/event-stream": ChatChunk},
    "/v1/completions": {"application/json": Completion, "text/event-stream": Completion},
    "/metrics": {"text/plain": None},
    "/": {"text/html": None},
    "/page/{name}": {"text/html": None, "text/css": None, "text/javascript": None},
    "/live": {"text/event-stream": None},
}
"""What a route answers with: others with a JSON object or list."""
REFUSALS = {
    400: "A field is wrong, or cannot be honoured; `param` is its name.",
    401: "The key of the server is missing, or wrong.",
    404: "There is no such thing.",
    413: "The body is too long.",
    421: "The server does not answer to this name.",
    429: "As many requests wait as may; Retry-After says when to ask again.",
    431: "The headers are too long.",
    500: "The server, or the model's line, has failed.",
    503: "The model is loading, or the server is ending.",
}
IDS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
WORD = {"type": "string", "minLength": 1}
NARROWED: dict[str, Schema] = {
    "n": {"type": "integer", "minimum": 1, "maximum": MOST_SAMPLES},
    "priority": {"type": "integer", "minimum": -MOST_PRIORITY, "maximum": MOST_PRIORITY},
    "cache_scope": {"type": "string", "minLength": 1, "maxLength": LONGEST_SCOPE},
    "stop": {"anyOf": [WORD, {"type": "array", "maxItems": MOST_STOPS, "items": WORD}]},
    "max_tokens": {"type": "integer", "minimum": 0, "maximum": LARGEST_ID},
    "max_completion_tokens": {"type": "integer", "minimum": 1, "maximum": LARGEST_ID},
    "min_tokens": {"type": "integer", "minimum": 0, "maximum": LARGEST_ID},
    "top_logprobs": {"type": "integer", "minimum": 0, "maximum": MOST_LOGPROBS},
    "stop_token_ids": {**IDS, "minItems": 0},
    "tokens": {**IDS, "minItems": 0},
    "logit_bias": {
        "type": "object",
        "propertyNames": {"pattern": "^[0-9]+$"},
        "additionalProperties": {"type": "number", "minimum": LOWEST_BIAS, "maximum": HIGHEST_BIAS},
    },
    "prompt": {
        "anyOf": [
            WORD,
            {"type": "array", "minItems": 1, "items": WORD},
            IDS,
            {"type": "array", "minItems": 1, "items": IDS},
        ]
    },
    "messages": {
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "object",
            "properties": {
                "role": {"enum": ["developer", "system", "user", "assistant", "tool"]},
                "content": {"type": "string"},
            },
            "required": ["role", "content"],
        },
    },
    "tools": {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {
                "type": {"const": "function"},
                "function": {
                    "type": "object",
                    "properties": {
                        "name": WORD,
                        "description": {"type": "string"},
                        "parameters": {"type": "object"},
                    },
                    "required": ["name"],
                },
            },
            "required": ["type", "function"],
        },
    },
    "tool_choice": {"enum": ["none", "auto", "required"]},
    "response_format": {
        "type": "object",
        "properties": {"type": {"enum": ["text", "json_object", "json_schema"]}, "json_schema": {"type": "object"}},
        "required": ["type"],
    },
}
"""What a field takes where its type in Python says less; null is taken, too, unless the field must be there."""
ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                **{name: {"type": ["string", "null"]} for name in ("param", "code")},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}


async def openapi(request: Request) -> Response:
    """This document."""
    return as_json(document(request.app.routes, served_of(request).names))


def document(routes: Iterable[BaseRoute], names: Sequence[str]) -> Schema:
    """What the routes take and give, of a model with these names."""
    kinds = [*TAKES.values(), ChatCompletion, ChatChunk, Completion]
    _, schemas = msgspec.json.schema_components(kinds, ref_template=REFERENCE)
    for kind in TAKES.values():
        _narrow(schemas[kind.__name__], names)
    paths = {re.sub(r":\w+}", "}", route.path): _operations(route) for route in routes if isinstance(route, Route)}
    keys = {"type": "http", "scheme": "bearer", "description": "Needed where the server has keys."}
    return {
        "openapi": "3.1.0",
        "info": {"title": f"Penstock serves {names[0]}", "version": "1"},
        "paths": paths,
        "components": {"schemas": {**schemas, "Error": ERROR}, "securitySchemes": {"key": keys}},
        "security": [{}, {"key": []}],
    }


def _narrow(schema: Schema, names: Sequence[str]) -> None:
    properties, required = schema["properties"], schema["required"]
    kinds = ((WHOLE_RANGES, "integer"), (NUMBER_RANGES, "number"))
    ranges = {
        name: {"type": kind, "minimum": low, "maximum": high}
        for of_kind, kind in kinds
        for name, (low, high) in of_kind.items()
    }
    for name, narrowed in {**ranges, **NARROWED, "model": {"enum": list(names)}}.items():
        if name in required:
            properties[name] = narrowed
        elif name in properties and {"type": "boolean"} not in properties[name]["anyOf"]:  # as `logprobs` of chats is
            properties[name] = {"anyOf": [narrowed, {"type": "null"}]}


def _operations(route: Route) -> Schema:
    path = re.sub(r":\w+}", "}", route.path)
    given = GIVES.get(path, {"application/json": None})
    summary = (inspect.getdoc(route.endpoint) or "").split("\n")[0]
    operation: Schema = {
        "summary": summary,
        "responses": {
            "200": {"description": summary, "content": {media: _reference(kind) for media, kind in given.items()}},
            **{str(status): _refusal(status, path) for status in REFUSALS},
        },
    }
    if path in TAKES:
        content = {"application/json": _reference(TAKES[path])}
        operation["requestBody"] = {"required": True, "content": content}
    if route.param_convertors:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in route.param_convertors
        ]
    return {method.lower(): operation for method in route.methods or () if method != "HEAD"}


def _reference(kind: type | None) -> Schema:
    return {} if kind is None else {"schema": {"$ref": REFERENCE.format(name=kind.__name__)}}


def _refusal(status: int, path: str) -> Schema:
    """An error, but of /health, which answers in its own words."""
    schema = {} if path == "/health" else {"schema": {"$ref": REFERENCE.format(name="Error")}}
    return {"description": REFUSALS[status], "content": {"application/json": schema}}
