"""Hands experts to the store, which gives them to the computation that wants them, and counts how long that takes.

Takes:  messages in the slot where the expert is computed, whose bytes may still be on their way.
Gives:  nothing: the experts' line ends here; the store keeps the slots, and gives them back.
Holds:  nothing of its own.
Fails:  naming the uploader, when an expert has not arrived; a failed computation is the compute scheduler's to report.
"""

import asyncio
from collections import deque
from collections.abc import Sequence

from actors.core.actor import Wiring
from actors.core.budget import Slot
from actors.core.event import Event
from actors.core.expert_store import ExpertStore
from actors.core.message import READY, Message
from actors.core.stage import Sink

LOOK_SECONDS = 0.002
"""Between two looks at a copy that has not landed. They may be late: all that is reported is that a copy has failed."""


class ExpertKeeper(Sink):
    """Never waits for an expert: whoever computes it launches that behind its arrival."""

    def __init__(self, store: ExpertStore) -> None:
        self._store = store
        self._coming: deque[Message[Slot]] = deque()
        self._watch: Event = READY

    def wire(self, wiring: Wiring) -> None:
        """As every actor; from now on the store tells it of computations."""
        super().wire(wiring)
        self._store.computed = self._computed

    async def take(self, message: Message[Slot]) -> None:
        """Hand it on at once, and watch over its arrival beside the actor's loop."""
        if message.seq == 0:
            self._coming.clear()
        self.keep((message,), ())
        self._store.arrive(message)
        self._coming.append(message)
        if self._watch.done():
            self._watch = self.start(message, self._see_them_land())

    def _computed(self, messages: Sequence[Message[Slot]], event: Event) -> None:
        """Count the time of a computation; the messages were counted when they came."""
        self.wiring.meter.launched(messages[0], (event,), messages[0].at.index, groups=0)

    async def _see_them_land(self) -> None:
        """Look now and then: a thread that waited for each copy would take time from the one that launches work."""
        while self._coming:
            message = self._coming.popleft()
            while not message.event.done():  # noqa: ASYNC110 (nothing tells of it but a thread)
                await asyncio.sleep(LOOK_SECONDS)
            await self.landed(message)
