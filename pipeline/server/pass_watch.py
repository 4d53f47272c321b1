"""Whether the pass under way is stuck: a disk or a device that answers no more fails nothing, and ends nothing."""

import asyncio
import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.api import Model
    from pipeline.generation.model_statistics import ModelStatistics

logger = logging.getLogger("penstock")
STUCK_SECONDS = 60.0
"""Half a layer of a large model may be computed for half of that, on a CPU, for a long prompt."""
STUCK_ON_CLUSTER_SECONDS = 600.0
"""There only whole passes are told of."""
LOOK_SECONDS = 5.0


class PassWatch:
    """Looks now and then whether anything has moved, while a pass is under way. `stuck` says what it waits for."""

    def __init__(self, model: "Model") -> None:
        self._runtime, self._statistics = model.runtime, model.statistics
        self._moved: tuple[float, ...] | None = None
        self._since = 0.0
        self.stuck: str | None = None

    async def run(self) -> None:
        """Look, and tell the log when the pass gets stuck and when it goes on."""
        while True:
            before, self.stuck = self.stuck, self.look(time.monotonic())
            if self.stuck is not None and before is None:
                logger.error("%s", self.stuck)
            elif self.stuck is None and before is not None:
                logger.warning("the pass that was stuck goes on")
            await asyncio.sleep(LOOK_SECONDS)

    def look(self, now: float) -> str | None:
        """Look, at `now` seconds; returns what the pass waits for if nothing has moved for long."""
        moved = _moved(self._statistics()) if self._runtime.admission.in_pass else None
        if moved is None or moved != self._moved:
            self._moved, self._since = moved, now
            return None
        elsewhere = self._runtime.settings.cluster is not None
        if (seconds := now - self._since) < (STUCK_ON_CLUSTER_SECONDS if elsewhere else STUCK_SECONDS):
            return None
        what = self._runtime.awaited()
        return f"a pass is under way, and nothing has been read, moved or computed for {seconds:.0f} s: {what}"


def _moved(said: "ModelStatistics") -> tuple[float, ...]:
    """What has changed whenever something has moved; a line that has begun anew counts from 0."""
    sent = sum(channel.sent for channel in said.channels.values())
    return said.passes, said.bytes_read, said.bytes_uploaded, sent, sum(said.busy_seconds.values())
