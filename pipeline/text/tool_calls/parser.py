"""Reads an answer as it comes: first its reasoning, then its text and calls."""

from collections.abc import Callable
from dataclasses import dataclass

import regex

from pipeline.text.tool_calls.deltas import Calls, Delta, ReasoningDelta, Steps, TextDelta
from pipeline.text.tool_calls.growing_text import GrowingText, Pattern, compiled
from pipeline.text.tool_calls.written_calls import Tools

SPACE = compiled(r"\s*")


@dataclass(frozen=True, slots=True)
class ReasoningMarks:
    """What stands before and after reasoning, at the beginning of an answer; `marks` of these may be special tokens."""

    begin: str
    end: str
    marks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class CallFormat:
    """How calls are written: behind what `begin` matches, or, `at_start`, without it where the answer begins.

    `read` reads one call, or a list of them, and says whether there was one; `end` is read behind it, where it comes.
    `marks` are the texts of these that may be special tokens.
    """

    begin: Pattern
    read: Callable[[GrowingText, Calls, Tools], Steps[bool]]
    end: Pattern | None = None
    at_start: bool = False
    marks: tuple[str, ...] = ()


class AnswerParser:
    """Makes deltas of one answer. What begins like a call and is none comes out as text; nothing raises.

    Arguments that are JSON come as they are written; where they break off, so do the deltas. Space around calls and
    reasoning is left out. With `opened` the prompt has begun the reasoning.
    """

    def __init__(
        self, reasoning: ReasoningMarks | None, call_format: CallFormat | None, tools: Tools, *, opened: bool = False
    ) -> None:
        self._source, self._calls = GrowingText(), Calls()
        self._steps = self._answer(reasoning, call_format, tools, opened)

    @property
    def calls(self) -> int:
        """How many calls have begun."""
        return self._calls.count

    def push(self, text: str) -> list[Delta]:
        """Return what is certain with this text behind all before."""
        self._source.text += text
        return self._new()

    def flush(self) -> list[Delta]:
        """Return what is left, now that nothing follows."""
        self._source.ended = True
        return self._new()

    def parted(self, text: str, *, last: bool = False) -> tuple[str, str]:
        """Return what is certain now of the reasoning, and of the rest, where calls are text."""
        deltas = [*self.push(text), *(self.flush() if last else ())]
        reasoning = "".join(one.text for one in deltas if isinstance(one, ReasoningDelta))
        return reasoning, "".join(one.text for one in deltas if isinstance(one, TextDelta))

    def _new(self) -> list[Delta]:
        deltas: list[Delta] = []
        while (delta := next(self._steps, None)) is not None:
            deltas.append(delta)
        return deltas

    def _answer(
        self, reasoning: ReasoningMarks | None, call_format: CallFormat | None, tools: Tools, opened: bool
    ) -> Steps[None]:
        source = self._source
        if reasoning is not None:
            begin = SPACE if opened else compiled(rf"\s*{regex.escape(reasoning.begin)}\s*")
            if (yield from source.match(begin)) is not None:
                yield from source.until(compiled(rf"\s*{regex.escape(reasoning.end)}\s*"), ReasoningDelta)
        if call_format is not None:
            yield from self._text_and_calls(call_format, tools)
        yield from source.rest(TextDelta)

    def _text_and_calls(self, call_format: CallFormat, tools: Tools) -> Steps[None]:
        if call_format.at_start:
            yield from self._read(call_format, tools)
        while (begun := (yield from self._source.until(call_format.begin, TextDelta))) is not None:
            if not (yield from self._read(call_format, tools)):
                yield TextDelta(begun[0])

    def _read(self, call_format: CallFormat, tools: Tools) -> Steps[bool]:
        called = yield from call_format.read(self._source, self._calls, tools)
        if called:
            if call_format.end is not None:
                yield from self._source.match(call_format.end)
            yield from self._source.match(SPACE)
        return called
