"""Watches over uploads for a triggered policy: reports what has landed, and uploads again what is overdue."""

import asyncio
import logging
from collections.abc import Callable

from actors.core.budget import Slot
from actors.core.errors import LineError
from actors.core.event import Event
from actors.core.message import Message
from actors.core.ports import PrefetchPolicy
from actors.core.prefetch import PrefetchQueue

logger = logging.getLogger("penstock")
FIRST_PATIENCE = 100
"""How many times longer the first upload of a kind may take: what is normal for it is not known yet."""
UPLOADS = 3
"""How often a group is uploaded before the line fails."""


class Arrivals:
    """One watch per upload. `reloaded` counts how often the event of an upload was overdue, of all groups."""

    def __init__(self, policy: PrefetchPolicy, queue: PrefetchQueue) -> None:
        self.queue = queue
        self._previous = asyncio.Event()
        self._previous.set()
        self._longest_seconds: dict[str, float] = {}
        self.host_waits = policy.waits != "chained"
        # Where the host does not wait, a computation may use the group already: it must not be overwritten.
        self._overdue_seconds = policy.fallback_seconds if self.host_waits else None
        self.reloaded = 0

    async def watch(self, message: Message[Slot], slot: Slot, event: Event, upload: Callable[[], Event]) -> None:
        """See the copy of `message.at` into `slot` land; `upload` issues it once more, and the host waits for it.

        The host slot still holds the bytes, as the stages before left them: it is free only when the watch has ended.
        Raises LineError when the event never comes.
        """
        previous, self._previous = self._previous, asyncio.Event()
        through = self._previous
        try:
            if self._overdue_seconds is None:
                await event.wait()
                return
            await previous.wait()
            await slot.vacated()
            for again in range(UPLOADS):
                if await self._comes(slot.kind, event, self._overdue_seconds, bool(again)):
                    return
                logger.warning(
                    "layer %d %s: the event of its upload is overdue; loading the group again",
                    message.layer, message.group,
                )  # fmt: skip
                self.reloaded += 1
                # The same bytes over the same bytes: what is left of the first upload can do no harm.
                event = upload()
            raise LineError(f"uploaded {UPLOADS} times, and the event of no upload came; is the device lost?")
        finally:
            through.set()
            self.queue.arrived()

    async def _comes(self, kind: str, event: Event, overdue_seconds: float, again: bool) -> bool:
        """Whether an upload's event comes in time: it may take what others took. Raises the upload's own error."""
        usual_seconds = self._longest_seconds.get(kind)
        if again or usual_seconds is None:  # what is issued again may stand behind the slow one
            usual_seconds = (usual_seconds or 0.0) + FIRST_PATIENCE * overdue_seconds
        patience = asyncio.timeout(usual_seconds + overdue_seconds)
        try:
            async with patience:
                await event.wait()
        except TimeoutError:
            if not patience.expired():
                raise
            if not event.done():
                return False
            await event.wait()  # the loop was late, not the event
        if event.span is not None:
            started, landed = event.span
            self._longest_seconds[kind] = max(self._longest_seconds.get(kind, 0.0), landed - started)
        return True
