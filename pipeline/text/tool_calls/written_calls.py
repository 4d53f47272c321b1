"""Calls that are not written as JSON: tags around values, Gemma's notation, Python. They count when complete."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pipeline.text.tool_calls.deltas import Calls, Steps
from pipeline.text.tool_calls.growing_text import GrowingText, Pattern, compiled

Tools = Mapping[str, Mapping[str, Any]]
"""The schemas of the parameters of each tool, by their names."""
Written = Iterator[tuple[str, dict[str, Any]]]
"""Names and arguments of calls."""
LITERALS = {"True": True, "False": False, "None": None}
DEEPEST = 64
LLAMA_CALL = compiled(r'\s*([\w.\-]{1,256})\.call(\((?:[^")]|"(?:[^"\\]|\\.)*"){0,4096}\))')
PYTHON_NAME, PYTHON_KEY = compiled(r"\s*([\w.\-]{1,256})\("), compiled(r"\s*,?\s*(\w{1,256})\s*=\s*")
GEMMA_NAME, GEMMA_KEY = compiled(r"\s*([\w.\-]{1,256})\{"), compiled(r"\s*,?\s*([^:{}\[\],]{1,256}):")
SPACES, SEPARATORS = compiled(r"\s*"), compiled(r"[ \t\r\n,]*")
GEMMA_PLAIN = compiled(r"[^,{}\[\]]+")


def complete_calls(source: GrowingText, calls: Calls, end: str, read: Callable[[str], Written]) -> Steps[bool]:
    """Read up to the mark `end`. Returns whether there were calls; if not, nothing is read."""
    text = yield from source.through(end)
    if text is None:
        return False
    if not (yield from _given(calls, read, text.removesuffix(end))):
        source.put_back(text)
        return False
    return True


def python_call(source: GrowingText, calls: Calls) -> Steps[bool]:
    """Read `name.call(key="value")`, Llama's notation for tools that it was trained with."""
    found = yield from source.match(LLAMA_CALL)
    if found is None:
        return False
    if not (yield from _given(calls, python, found[1] + found[2])):
        source.put_back(found[0])
        return False
    return True


def _given(calls: Calls, read: Callable[[str], Written], text: str) -> Steps[bool]:
    try:
        written = [*read(text)]
    except (ValueError, RecursionError):
        return False
    for name, arguments in written:
        yield calls.begin(name)
        yield calls.arguments(json.dumps(arguments, ensure_ascii=False))
    return bool(written)


def tagged(head: Pattern, parameter: Pattern, tools: Tools, text: str) -> Written:
    """A name, then keys and values between tags. What a value's text means is said by the schema of the tool."""
    found = head.match(text)
    if found is None:
        raise ValueError(text)
    name, place = found[1].strip(), found.end()
    properties = tools.get(name, {}).get("properties")
    schemas = properties if isinstance(properties, Mapping) else {}
    arguments = {}
    while one := parameter.match(text, place):
        arguments[one[1]] = _typed(one[2], schemas.get(one[1]))
        place = one.end()
    if text[place:].strip():
        raise ValueError(text)
    yield name, arguments


def _typed(text: str, schema: object) -> Any:
    kinds = {*kinds_of(schema)}
    value = LITERALS.get(text, text)
    try:
        value = json.loads(text) if value is text else value
    except (ValueError, RecursionError):
        return text
    return text if "string" in kinds and not (value is None and "null" in kinds) else value


def kinds_of(schema: object) -> Iterator[str]:
    """The types that a schema allows."""
    if isinstance(schema, Mapping):
        kinds = schema.get("type", ())
        yield from [kinds] if isinstance(kinds, str) else [kind for kind in kinds if isinstance(kind, str)]
        for word in ("anyOf", "oneOf"):
            for one in schema.get(word) or ():
                yield from kinds_of(one)


def python(text: str) -> Written:
    """Calls of functions, all arguments of which have names, and values as in JSON or Python."""
    place = 0
    while (place := SEPARATORS.match(text, place).end()) < len(text):
        found = PYTHON_NAME.match(text, place)
        if found is None:
            raise ValueError(text)
        arguments, place = {}, found.end()
        while key := PYTHON_KEY.match(text, place):
            arguments[key[1]], place = _python_value(text, key.end())
        place = _after(text, place, ")")
        yield found[1], arguments


def _python_value(text: str, place: int) -> tuple[Any, int]:
    for word, value in LITERALS.items():
        if text.startswith(word, place):
            return value, place + len(word)
    return json.JSONDecoder().raw_decode(text, place)


def gemma(quote: str, text: str) -> Written:
    """A name and an object, whose texts stand between two `quote`; its keys may, too."""
    found = GEMMA_NAME.match(text)
    if found is None:
        raise ValueError(text)
    arguments, place = _gemma_value(quote, text, found.end() - 1, DEEPEST)
    if text[place:].strip():
        raise ValueError(text)
    yield found[1], arguments


def _gemma_value(quote: str, text: str, place: int, deepest: int) -> tuple[Any, int]:
    if not deepest:
        raise ValueError(text)
    place = _behind_space(text, place)
    if text.startswith(quote, place):
        end = text.index(quote, place + len(quote))
        return text[place + len(quote) : end], end + len(quote)
    if text.startswith("{", place):
        found: dict[str, Any] = {}
        place += 1
        while key := GEMMA_KEY.match(text, place):
            name = key[1].strip().removeprefix(quote).removesuffix(quote)
            found[name], place = _gemma_value(quote, text, key.end(), deepest - 1)
        return found, _after(text, place, "}")
    if text.startswith("[", place):
        values: list[Any] = []
        place += 1
        while not text.startswith("]", place):
            value, place = _gemma_value(quote, text, place, deepest - 1)
            values.append(value)
            place += text.startswith(",", place)
        return values, place + 1
    plain = GEMMA_PLAIN.match(text, place)
    if plain is None:
        raise ValueError(text)
    return _typed(plain[0].strip(), None), plain.end()


def _behind_space(text: str, place: int) -> int:
    return int(SPACES.match(text, place).end())


def _after(text: str, place: int, mark: str) -> int:
    place = _behind_space(text, place)
    if not text.startswith(mark, place):
        raise ValueError(text)
    return place + len(mark)
