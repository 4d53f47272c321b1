"""A call that must come: a grammar of calls in a format, for the argument `response_format`."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import RequestError, shown
from pipeline.text.tool_calls.written_calls import Tools, kinds_of

NAME, ARGUMENTS, PARAMETERS = "NAME", "ARGUMENTS", "PARAMETERS"
"""Where they stand in what is written of a call: its arguments as JSON, or between tags."""
JSON_SPACE = r"(\x20|\x0D?\x0A[\x20\x09]{0,20})?"
"""Between two parts of a JSON text, on one line or indented: a model at a loss would write spaces without an end."""
SAID = {"type", "properties", "required", "additionalProperties", "title", "description", "$schema", "$defs", "strict"}
TEXT_SAID = {"type", "enum", "title", "description", "default", "examples", "anyOf", "oneOf"}
"""What a schema may say of arguments, or of a text, that stand between tags."""
NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class Writing:
    """How calls are written: the parts of one, what is around all, and between two; None where there is only one."""

    call: tuple[str, ...]
    first: tuple[str, ...] = ()
    between: tuple[str, ...] | None = None
    last: tuple[str, ...] = ()


WRITINGS = {
    "hermes": Writing(
        ("<tool_call>", '\n{"name": "', NAME, '", "arguments": ', ARGUMENTS, "}\n", "</tool_call>"), between=("\n",)
    ),
    "llama3": Writing(('{"name": "', NAME, '", "parameters": ', ARGUMENTS, "}")),
    "mistral": Writing(
        ('{"name": "', NAME, '", "arguments": ', ARGUMENTS, "}"), ("[TOOL_CALLS]", " ["), (", ",), ("]",)
    ),
    "mistral-args": Writing(("[TOOL_CALLS]", NAME, "[ARGS]", ARGUMENTS), between=()),
    "granite": Writing(
        ('{"name": "', NAME, '", "arguments": ', ARGUMENTS, "}"), ("<|tool_call|>", "["), (", ",), ("]",)
    ),
    "glm4": Writing((NAME, "\n", ARGUMENTS)),
    "qwen3-coder": Writing(
        ("<tool_call>", "\n<function=", NAME, ">\n", PARAMETERS, "</function>\n", "</tool_call>"), between=("\n",)
    ),
}
"""By the names of the formats."""


def forced_calls(
    name: str, marks: Sequence[str], tools: Tools, tool_choice: object, *, parallel_tool_calls: bool
) -> dict[str, Any]:
    """Return the argument `response_format` under which an answer is a call, or several of them where they may be.

    `name` and `marks` are those of the format. Raises RequestError for what `tool_choice` cannot be, and for a format
    in which no call can be forced.
    """
    if not tools:
        raise RequestError("tool_choice: needs tools to choose from; have none")
    if name not in WRITINGS:
        have = f"a chat template with the format {name}"
        raise RequestError(f"tool_choice: need one of the formats {', '.join(WRITINGS)} to force a call; have {have}")
    writing = WRITINGS[name]
    names = [*tools] if tool_choice == "required" else [_chosen(tool_choice, tools)]
    rules, calls = _Rules(marks), []
    for one in names:
        try:
            calls.append(rules.sequence(writing.call, one, tools[one]))
        except RequestError:
            raise
        except (AttributeError, TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"tools: the parameters of {shown(one)} are no JSON schema ({error})") from error
    start = [*rules.parts(writing.first), "call"]
    if parallel_tool_calls and writing.between is not None:
        start.append(f"({' '.join([*rules.parts(writing.between), 'call'])})*")
    lines = [f"start: {' '.join([*start, *rules.parts(writing.last)])}", f"call: {' | '.join(calls)}", *rules.lines]
    return {"type": "grammar", "grammar": "\n".join(lines), "marks": rules.marks}


def _chosen(tool_choice: object, tools: Tools) -> str:
    function = tool_choice.get("function") if isinstance(tool_choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        need = "'none', 'auto', 'required' or an object that names a function"
        raise RequestError(f"tool_choice: need {need}; have {shown(tool_choice)}")
    if name not in tools:
        raise RequestError(f"tool_choice: need the name of one of the tools ({', '.join(tools)}); have {shown(name)}")
    return name


class _Rules:
    """The rules of a grammar, and those that are marks, which may be special tokens."""

    def __init__(self, marks: Sequence[str]) -> None:
        self.lines: list[str] = []
        self._calls = 0
        self.marks: dict[str, str] = {}
        self._known = {text: f"mark_{index}" for index, text in enumerate(marks)}

    def parts(self, texts: Sequence[str]) -> list[str]:
        """The texts as parts of a rule."""
        self.marks |= {self._known[text]: text for text in texts if text in self._known}
        return [self._known.get(text) or json.dumps(text) for text in texts]

    def sequence(self, call: Sequence[str], name: str, parameters: Mapping[str, Any]) -> str:
        """A rule for calls of one tool; its name."""
        number, self._calls = self._calls, self._calls + 1
        parts = []
        for part in call:
            if part == ARGUMENTS:
                parts.append(self._json(parameters or NO_PARAMETERS))
            elif part == PARAMETERS:
                _check_said(name, parameters, SAID)
                parts += [self._tagged(name, parameters, key) for key in parameters.get("properties", {})]
            else:
                parts += self.parts([json.dumps(name)[1:-1] if part == NAME else part])
        self.lines.append(f"call_{number}: {' '.join(parts)}")
        return f"call_{number}"

    def _tagged(self, tool: str, parameters: Mapping[str, Any], key: str) -> str:
        """A rule for one parameter between tags, as part of another rule."""
        schema, end = parameters["properties"][key], json.dumps("\n</parameter>\n")
        name = f"value_{len(self.lines)}"
        if "string" not in {*kinds_of(schema)}:
            value = f"{name}: {self._json({'$defs': parameters.get('$defs', {}), **schema})} {end}"
        elif (said := schema.get("enum")) is not None:
            value = f"{name}: ({' | '.join(map(_text, said))}) {end}"
        else:
            value = f"{name}[lazy]: /(.|\\n)*/ {end}"
            _check_said(f"{tool}.{key}", schema, TEXT_SAID)
        self.lines += [value, f"for_{name}: {json.dumps(f'<parameter={key}>' + chr(10))} {name}"]
        return f"for_{name}{'' if key in parameters.get('required', ()) else '?'}"

    def _json(self, schema: Mapping[str, Any]) -> str:
        name = f"json_{len(self.lines)}"
        spaced = {**schema, "x-guidance": {"whitespace_pattern": JSON_SPACE, "lenient": False}}
        self.lines.append(f"{name}: %json {json.dumps(spaced)}")
        return name


def _text(value: object) -> str:
    return json.dumps(value if isinstance(value, str) else json.dumps(value))


def _check_said(where: str, schema: Mapping[str, Any], known: Collection[str]) -> None:
    if more := [one for one in schema if one not in known]:
        raise RequestError(f"tool_choice: {where}: {more[0]} cannot be kept in calls between tags; leave it out")
