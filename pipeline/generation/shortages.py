"""What keeps requests from sharing a pass: counted, and told once while requests wait again and again."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping

logger = logging.getLogger("penstock")
SETTINGS = ("kv_tokens", "max_requests", "max_tokens_per_pass")
QUIET_SECONDS = 60
"""A shortage is told anew after so long without one: otherwise a busy service would fill its log."""


class Shortages:
    """`passes` counts, by setting, the passes that requests did not share because of it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.passes = Counter(dict.fromkeys(SETTINGS, 0))
        self._clock = clock
        self._lasting: frozenset[str] = frozenset()
        self._last_seconds: dict[str, float] = {}

    def note(self, found: Mapping[str, Callable[[], str]], *, passes: int) -> None:
        """Take note of the settings because of which requests wait now, each with what it tells about itself.

        `passes` is 1 where a pass begins without them, 0 where none can go on. A pass may take longer than the quiet
        after which it is told anew.
        """
        for setting, tell in found.items():
            self.passes[setting] += passes
            now = self._clock()
            quiet = now - self._last_seconds.get(setting, -QUIET_SECONDS)
            if setting not in self._lasting and quiet >= QUIET_SECONDS:
                logger.warning("%s", tell())
            self._last_seconds[setting] = now
        self._lasting = frozenset(found)
