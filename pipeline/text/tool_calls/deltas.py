"""What a parser makes of an answer, piece by piece, and how calls are numbered."""

import secrets
import string
from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

ID_LETTERS, ID_LENGTH = string.ascii_letters + string.digits, 9
"""Templates of Mistral take no other ids back; no other template minds."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of the answer's own text."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of the text that the model wrote for itself."""

    text: str


@dataclass(frozen=True, slots=True)
class CallDelta:
    """Call number `index` of the answer begins, of the tool `name`."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsDelta:
    """More of the arguments of a call, which are together the text of a JSON object, if the model wrote one."""

    index: int
    text: str


Delta: TypeAlias = TextDelta | ReasoningDelta | CallDelta | ArgumentsDelta
Value = TypeVar("Value")
Steps: TypeAlias = Generator[Delta | None, None, Value]
"""A parser at work: it gives deltas, and None where it needs more text; in the end it returns a value."""


class Calls:
    """Numbers the calls of one answer."""

    def __init__(self) -> None:
        self.count = 0

    def begin(self, name: str) -> CallDelta:
        """Begin the next one."""
        self.count += 1
        return CallDelta(self.count - 1, "".join(secrets.choice(ID_LETTERS) for _ in range(ID_LENGTH)), name)

    def arguments(self, text: str) -> ArgumentsDelta:
        """More of the one that has begun last."""
        return ArgumentsDelta(self.count - 1, text)
