"""Measuring, advice and caches make a model faster. None of them may keep it from opening."""

import logging
import threading
from collections.abc import Callable, Hashable
from typing import TypeVar

logger = logging.getLogger("penstock")
Result = TypeVar("Result")


class Once:
    """Tells, on any thread, whether it is called with a value for the first time."""

    def __init__(self) -> None:
        self._seen: set[Hashable] = set()
        self._lock = threading.Lock()

    def __call__(self, value: Hashable) -> bool:
        """Note the value, and return whether it is new."""
        with self._lock:
            is_new = value not in self._seen
            self._seen.add(value)
        return is_new


_is_new = Once()


def attempt(what: str, do: Callable[[], Result], otherwise: Result, to_do: str) -> Result:
    """Return what `do` gives; where that fails, for any reason, `otherwise`, with one warning.

    The warning, one in a process for each reason, says `what` cannot be, why, and what is or can be done (`to_do`).
    """
    try:
        return do()
    except Exception as error:
        warning = f"{what}: {error or type(error).__name__}; {to_do}"
        if _is_new(warning):
            logger.warning("%s", warning)
        return otherwise
