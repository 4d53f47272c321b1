"""The finding of one check."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["good", "note", "bad"]


@dataclass(frozen=True, slots=True)
class Check:
    """A "note" costs speed or memory, "bad" means that something does not work. `to_do` is empty when all is good."""

    name: str
    verdict: Verdict
    found: str
    to_do: str = ""


def failed(name: str, error: Exception) -> Check:
    """A check that could not be made."""
    said = f"{type(error).__name__}: {error}"
    return Check(name, "bad", said, "the check itself failed: mend what the message names, or report it as a bug")


def guarded(name: str, check: Callable[[], Check]) -> Check:
    """The check, or that it failed: it must not hide the others."""
    try:
        return check()
    except Exception as error:
        return failed(name, error)
