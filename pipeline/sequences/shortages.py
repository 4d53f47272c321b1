"""What keeps requests from sharing a pass: counted, and told once for each stretch of time in which somebody waits."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping

logger = logging.getLogger("penstock")
SETTINGS = ("kv_tokens", "max_requests", "max_tokens_per_pass")


class Shortages:
    """`passes` counts, by setting, the passes that somebody did not share because of it."""

    def __init__(self) -> None:
        self.passes = Counter(dict.fromkeys(SETTINGS, 0))
        self._told: set[str] = set()

    def note(self, found: Mapping[str, Callable[[], str]], *, passes: int) -> None:
        """Take note of the settings because of which somebody waits now, each with what it tells about itself.

        `passes` is 1 where a pass begins without them, 0 where nobody can go on. The stretch ends when nobody waits.
        """
        for setting, tell in found.items():
            self.passes[setting] += passes
            if setting not in self._told:
                self._told.add(setting)
                logger.warning("%s", tell())
        if not found:
            self._told.clear()
