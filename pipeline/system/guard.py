"""Measuring, advice and caches make a model faster. None of them may keep it from opening."""

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

logger = logging.getLogger("penstock")
Result = TypeVar("Result")

_warned: set[str] = set()
_lock = threading.Lock()


def attempt(what: str, do: Callable[[], Result], otherwise: Result, to_do: str) -> Result:
    """What `do` gives; where that fails, for any reason, `otherwise`, and one warning.

    The warning says `what` cannot be, why, and what is done instead or can be set (`to_do`); once in a process for
    each reason.
    """
    try:
        return do()
    except Exception as error:
        warning = f"{what}: {error or type(error).__name__}; {to_do}"
        with _lock:
            new = warning not in _warned
            _warned.add(warning)
        if new:
            logger.warning("%s", warning)
        return otherwise
