"""Runs the program on the groups as they come, and frees their slots.

Takes:  messages in a device slot, whose bytes may still be on their way.
Gives:  nothing: the line ends here, tokens leave through the program.
Holds:  the state of the pass that it is in.
Fails:  when a computation failed, naming the group; or the upload before it, naming the uploader.
"""

from typing import Any

from actors.core.budget import Slot
from actors.core.errors import ActorFailed
from actors.core.message import Message
from actors.core.ports import Event, Program
from actors.core.stage import Sink


class ComputeScheduler(Sink):
    """Launches each group's computation behind the group's event, so that the host never stands between two groups."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._pass: Any = None
        self._launched: list[tuple[Message[Slot], Event]] = []

    async def take(self, message: Message[Slot]) -> None:
        """Launch one group; at the end of a pass, see its results out before the next begins."""
        await self.host_is_through(message, message.at)
        if message.seq % self._program.groups_per_pass == 0:
            self._launched.clear()
            self._pass = await self._program.begin()
        event = self._program.step(self._pass, message)
        self.free(message, after=event)
        self._launched.append((message, event))
        if len(self._launched) == self._program.groups_per_pass:
            await self._finish()

    async def _finish(self) -> None:
        try:
            await self._program.finish(self._pass)
        except ActorFailed:
            raise
        except Exception:
            self._blame()
            raise

    def _blame(self) -> None:
        """Name the first group that failed in this pass: everything behind it failed for the same reason."""
        for message, event in self._launched:
            if event.error is not None:
                arrived = message.event.error is None
                actor = self.name if arrived else message.at.filler
                raise ActorFailed(actor, message.layer, message.group, event.error) from event.error
