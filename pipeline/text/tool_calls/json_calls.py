"""Calls that are written as JSON: objects with name and arguments, alone or in a list, and names before arguments."""

import json
from collections.abc import Container
from typing import Any

from pipeline.text.tool_calls.deltas import Calls, Steps
from pipeline.text.tool_calls.growing_text import GrowingText, Pattern, compiled

HEAD = compiled(r'\s*\{\s*"name"\s*:\s*"(?P<name>(?:[^"\\]|\\.){1,256})"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
TAIL = compiled(r'(?:\s*,\s*"(?:id|type)"\s*:\s*"[^"]{0,256}")*\s*\}')
BEGIN, NEXT, END = compiled(r"\s*\[\s*"), compiled(r"\s*[,;]?\s*(?=\{)"), compiled(r"\s*\]")
BRACKETS = {"{": "}", "[": "]"}


class Extent:
    """Finds where a JSON object or list ends that begins a text, looking at each character once."""

    def __init__(self) -> None:
        self._seen = 0
        self._closing: list[str] = []
        self._quoted = self._escaped = False
        self.ended = self.broken = False

    def look(self, text: str) -> int:
        """How much of `text` is inside: what has been looked at before is not looked at again."""
        for index in range(self._seen, len(text)):
            letter = text[index]
            if self._quoted:
                self._quoted = self._escaped or letter != '"'
                self._escaped = letter == "\\" and not self._escaped
            elif letter == '"':
                self._quoted = True
            elif letter in BRACKETS:
                self._closing.append(BRACKETS[letter])
            elif letter in "}]":
                self.broken = self._closing.pop() != letter
                self.ended = not self.broken and not self._closing
                if self.broken or self.ended:
                    return index + self.ended
        self._seen = len(text)
        return len(text)

    def taken(self) -> None:
        """Look at the text from its beginning on: what was looked at has been read."""
        self._seen = 0


def json_calls(source: GrowingText, calls: Calls, known: Container[str] | None = None) -> Steps[bool]:
    """Read an object, or a list of some. Returns whether there was a call; if not, nothing is read.

    With `known`, only calls of these tools count, and only what begins with the name: other JSON may be the answer.
    """
    opening = (yield from source.match(BEGIN)) if known is None else None
    begun, separator = calls.count, None
    while (yield from _json_call(source, calls, known)):
        separator = yield from source.match(NEXT)
        if separator is None:
            break
    if separator is not None:  # no call has come behind it
        source.put_back(separator[0])
    if opening is not None:
        if calls.count == begun:
            source.put_back(opening[0])
        else:
            yield from source.match(END)
    return calls.count > begun


def named_call(source: GrowingText, calls: Calls, head: Pattern, known: Container[str] | None = None) -> Steps[bool]:
    """Read what the pattern says of a name, then arguments. Returns whether that came; if not, nothing is read."""
    found = yield from source.match(head)
    if found is None:
        return False
    if known is not None and found["name"] not in known:
        source.put_back(found[0])
        return False
    yield calls.begin(found["name"])
    yield from _arguments(source, calls)
    return True


def _json_call(source: GrowingText, calls: Calls, known: Container[str] | None) -> Steps[bool]:
    found = yield from source.match(HEAD)
    if found is None:
        return known is None and (yield from _whole_call(source, calls))
    name = _loaded(f'"{found["name"]}"')
    if not isinstance(name, str) or (known is not None and name not in known):
        source.put_back(found[0])
        return False
    yield calls.begin(name)
    if (yield from _arguments(source, calls)):
        yield from source.match(TAIL)
    return True


def _arguments(source: GrowingText, calls: Calls) -> Steps[bool]:
    """Give an object as it comes. Returns whether it ended."""
    extent = Extent()
    while True:
        if text := source.take(extent.look(source.text)):
            yield calls.arguments(text)
        extent.taken()
        if extent.ended or extent.broken or source.ended:
            return extent.ended
        yield None


def _whole_call(source: GrowingText, calls: Calls) -> Steps[bool]:
    """Read an object that says name and arguments in another way, when all of it has come."""
    before = yield from source.match(NEXT)
    if before is None:
        return False
    extent = Extent()
    length = extent.look(source.text)
    while not (extent.ended or extent.broken or source.ended):
        yield None
        length = extent.look(source.text)
    call = _loaded(source.text[:length]) if extent.ended else None
    name = call.get("name") if isinstance(call, dict) else None
    arguments = call.get("arguments", call.get("parameters", {})) if isinstance(call, dict) else None
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    if not isinstance(name, str) or not isinstance(_loaded(written), dict):
        source.put_back(before[0])
        return False
    source.take(length)
    yield calls.begin(name)
    yield calls.arguments(written)
    return True


def _loaded(text: str) -> Any:
    """The value of a JSON text; None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
