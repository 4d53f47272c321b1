"""What an answer must look like, as OpenAI's clients ask for it, becomes the text of a grammar."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import RequestError, shown

LONGEST_GRAMMAR = 1 << 16
"""Characters: a schema of 64 kB is compiled in less than a second, and chooses tokens in some milliseconds each."""
MOST_MERGED = 8
"""The patterns and formats of a schema with allOf: what they have in common takes twice as long with each more."""
TEXTS = ("regex", "grammar")
"""Kinds that are one text, in the field of the same name."""
ANY_OBJECT = {"type": "object"}


@dataclass(frozen=True, slots=True)
class GrammarSource:
    """A grammar that is not compiled: a JSON schema, a regular expression or Lark's notation, as its `kind` says.

    `marks` are rules of the grammar that are a text, which is one token where it is a special one.
    """

    kind: str
    text: str
    marks: tuple[tuple[str, str], ...] = field(default=())


def read_response_format(value: object) -> GrammarSource | None:
    """Read the argument `response_format`; None where it asks for nothing. Raises RequestError for what is malformed.

    Whether a grammar can be compiled is found later, on a thread.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise _error("", "an object with a type", value)
    kind = value.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return GrammarSource("json_schema", json.dumps(ANY_OBJECT))
    if kind == "json_schema":
        stated = value.get("json_schema")
        if not isinstance(stated, Mapping) or stated.get("schema") is None:
            raise _error(".json_schema", 'an object with a "schema"', stated)
        return GrammarSource("json_schema", _schema_text(stated["schema"]))
    if kind in TEXTS:
        text = value.get(kind)
        if not isinstance(text, str) or not 0 < len(text) <= LONGEST_GRAMMAR:
            raise _error(f".{kind}", f"a text of 1 to {LONGEST_GRAMMAR} characters", text)
        marks = value.get("marks", {})
        if not isinstance(marks, Mapping) or not all(isinstance(one, str) for one in (*marks, *marks.values())):
            raise _error(".marks", "texts by the names of rules", marks)
        _check_merged(text, f"response_format.{kind}")
        return GrammarSource(kind, text, tuple(marks.items()))
    raise _error(".type", "text, json_object, json_schema, regex or grammar", kind)


def _schema_text(schema: Any) -> str:
    """The schema as a text, which the caller cannot change any more."""
    if not isinstance(schema, Mapping):
        raise _error(".json_schema.schema", "an object", schema)
    try:
        text = json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise _error(".json_schema.schema", f"a JSON schema ({error})", schema) from error
    if len(text) > LONGEST_GRAMMAR:
        have = f"one of {len(text)} characters"
        raise RequestError(
            f"response_format.json_schema.schema: need at most {LONGEST_GRAMMAR} characters; have {have}"
        )
    _check_merged(text, "response_format.json_schema.schema")
    return text


def _check_merged(text: str, where: str) -> None:
    merged = text.count('"pattern"') + text.count('"format"')
    if '"allOf"' in text and merged > MOST_MERGED:
        raise RequestError(f"{where}: need at most {MOST_MERGED} of pattern and format beside allOf; have {merged}")


def _error(where: str, need: str, have: object) -> RequestError:
    return RequestError(f"response_format{where}: need {need}; have {shown(have)}")
