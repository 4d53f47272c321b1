"""Hands experts to the store, which gives them to the computation that wants them.

Takes:  messages in the slot where the expert is computed, whose bytes may still be on their way.
Gives:  nothing: the experts' line ends here; the store keeps the slots, and gives them back.
Holds:  nothing of its own.
Fails:  naming the uploader, when an expert has not arrived; a failed computation is the compute scheduler's to report.
"""

from actors.core.budget import Slot
from actors.core.expert_store import ExpertStore
from actors.core.message import Message
from actors.core.stage import Sink


class ExpertKeeper(Sink):
    """Never waits for an expert: whoever computes it launches that behind its arrival."""

    def __init__(self, store: ExpertStore) -> None:
        self._store = store

    async def take(self, message: Message[Slot]) -> None:
        """Hand it on at once, and watch over its arrival beside the actor's loop, unless it is there."""
        self.keep((message,), ())
        self._store.arrive(message)
        if message.event.done():
            await self.landed(message)
        else:
            self.start(message, self.landed(message))
