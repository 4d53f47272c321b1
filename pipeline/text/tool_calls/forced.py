"""A call that must come: a grammar of calls in a format, for the argument `response_format`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import RequestError, shown
from pipeline.text.tool_calls.written_calls import Tools

NAME, ARGUMENTS = "NAME", "ARGUMENTS"
"""Where they stand in what is written of a call."""
JSON_SPACE = r"(\x20|\x0D?\x0A[\x20\x09]{0,20})?"
"""Between two parts of a JSON text, on one line or indented: a model at a loss would write spaces without an end."""
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
}
"""Of the formats whose arguments are JSON, by their names."""


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
        have = f"a chat template whose format is {name}"
        raise RequestError(
            f"tool_choice: need a format with arguments in JSON to force a call; have {have}; use 'auto'"
        )
    writing = WRITINGS[name]
    names = [*tools] if tool_choice == "required" else [_chosen(tool_choice, tools)]
    rules = _Rules(marks)
    calls = [rules.sequence(writing.call, one, tools[one]) for one in names]
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
        self.marks: dict[str, str] = {}
        self._known = {text: f"mark_{index}" for index, text in enumerate(marks)}

    def parts(self, texts: Sequence[str]) -> list[str]:
        """The texts as parts of a rule."""
        self.marks |= {self._known[text]: text for text in texts if text in self._known}
        return [self._known.get(text) or json.dumps(text) for text in texts]

    def sequence(self, call: Sequence[str], name: str, parameters: Mapping[str, Any]) -> str:
        """A rule for calls of one tool; its name."""
        number = len(self.lines) // 2
        schema = {**(parameters or NO_PARAMETERS), "x-guidance": {"whitespace_pattern": JSON_SPACE, "lenient": False}}
        filled = [part.replace(NAME, json.dumps(name)[1:-1]) if part == NAME else part for part in call]
        parts = [f"arguments_{number}" if part == ARGUMENTS else self.parts([part])[0] for part in filled]
        self.lines += [f"call_{number}: {' '.join(parts)}", f"arguments_{number}: %json {json.dumps(schema)}"]
        return f"call_{number}"
