"""Watches over uploads for a triggered policy: reports what has landed, and loads again what is overdue."""

import asyncio
import logging
from collections.abc import Callable

from actors.core.budget import Slot
from actors.core.message import Message
from actors.core.ports import Event, PrefetchPolicy, WeightSource
from actors.core.prefetch import PrefetchQueue

logger = logging.getLogger("penstock")
FIRST_PATIENCE = 100
"""How many times longer the first upload of a kind may take: nobody knows yet what is normal for it."""


class Arrivals:
    """One watch per upload. `reloaded` counts the groups whose event was overdue."""

    def __init__(self, policy: PrefetchPolicy, source: WeightSource, queue: PrefetchQueue) -> None:
        self._source = source
        self._queue = queue
        self._previous = asyncio.Event()
        self._previous.set()
        self._longest_seconds: dict[str, float] = {}
        self.host_waits = policy.waits != "chained"
        # Where the host does not wait, it cannot know whether a computation uses the group already.
        self._overdue_seconds = policy.fallback_seconds if self.host_waits else None
        self.reloaded = 0

    async def watch(self, message: Message[Slot], slot: Slot, event: Event, upload: Callable[[], Event]) -> None:
        """See the copy of `message.at` into `slot` land; `upload` issues it once more."""
        previous, self._previous = self._previous, asyncio.Event()
        through = self._previous
        try:
            if self._overdue_seconds is None:
                await event.wait()
            else:
                await self._wait_patiently(slot, event, previous, self._overdue_seconds)
        except TimeoutError:
            logger.warning(
                "layer %d %s: the event of its upload is overdue; loading the group again", message.layer, message.group
            )
            self.reloaded += 1
            # The same bytes over the same bytes: what is left of the first upload can do no harm. Uploads are one lane
            # in order, so the end of the second is the end of the first.
            await self._source.read_into(message.layer, message.group, message.at.buffer)
            again = upload()
            await again.wait()
            self._learn(slot.kind, again)
        finally:
            through.set()
            self._queue.landed()

    async def _wait_patiently(self, slot: Slot, event: Event, previous: asyncio.Event, overdue_seconds: float) -> None:
        """Wait for an upload. It can begin once the link and the slot are free, and may take what others took."""
        await previous.wait()
        await slot.vacated()
        usual_seconds = self._longest_seconds.get(slot.kind, FIRST_PATIENCE * overdue_seconds)
        async with asyncio.timeout(usual_seconds + overdue_seconds):
            await event.wait()
        self._learn(slot.kind, event)

    def _learn(self, kind: str, event: Event) -> None:
        if event.span is not None:
            started, landed = event.span
            self._longest_seconds[kind] = max(self._longest_seconds.get(kind, 0.0), landed - started)
