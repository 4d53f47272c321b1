"""Runs the program on the groups in compute order, and frees their slots.

Takes:  messages in a device slot, whose bytes may still be on their way.
Gives:  nothing: the line ends here, tokens leave through the program.
Holds:  the state of the pass that it is in, and the groups that came before their turn.
Fails:  when a computation failed, naming the group; or the upload before it, naming the uploader.
"""

from collections.abc import Sequence
from typing import Any

from actors.core.budget import Slot
from actors.core.errors import ActorFailed
from actors.core.event import Event
from actors.core.message import READY, GroupKey, Message, ended
from actors.core.ports import Program
from actors.core.prefetch import PrefetchQueue
from actors.core.stage import Sink


class ComputeScheduler(Sink):
    """Launches each group's computation behind the group's event, so that the host never stands between two groups.

    A blocking scheduler checks each group in first. With a queue it reports every start and end to the planner.
    """

    def __init__(self, program: Program, *, blocking: bool = False, queue: PrefetchQueue | None = None) -> None:
        self._program = program
        self._blocking = blocking
        self._queue = queue
        self._pass: Any = None
        self._restart()

    async def run(self) -> None:
        """As every actor; the first pass is begun while its first group is still on its way."""
        self._begun = self.start(None, self._begin())
        await super().run()

    def _restart(self) -> None:
        self._position = 0
        self._parked: dict[GroupKey, Message[Slot]] = {}
        self._launched: list[tuple[Message[Slot], Sequence[Event]]] = []
        self._previous: Sequence[Event] = ()
        self._reports: tuple[Event, Event] = (READY, READY)

    async def take(self, message: Message[Slot]) -> None:
        """Launch the group, and those behind it that came before their turn; or park it until its own."""
        if message.seq == 0:
            self._restart()
        self._parked[message.key] = message
        while (following := self._parked.pop(self._program.order[len(self._launched)], None)) is not None:
            await self._compute(following)

    async def _compute(self, message: Message[Slot]) -> None:
        """Launch one group: the first when a pass has begun; behind the last, wait for the results of the pass."""
        if not self._launched:
            await self.stalled("request", message, self._begin() if self._position else self._begun.wait())
        await self.host_is_through(message, message.at)
        if (preparing := self._program.prepare(self._pass, message)) is not None:
            await self.stalled("companion", message, preparing)
        if self._blocking:
            await self.stalled("check", message, self._program.check_in(self._pass, message))
        ran = self._program.step(self._pass, message)
        self.give_back(message, ran)
        if self._queue is not None:
            self._tell(self._queue, message, ran)
        self._launched.append((message, ran))
        self._position += 1
        if len(self._launched) == len(self._program.order):
            await self.stalled("result", message, self._finish())
            self._launched.clear()

    def _tell(self, queue: PrefetchQueue, message: Message[Slot], ran: Sequence[Event]) -> None:
        """Report a computation's start and end. A report waits for the one before, so they come in compute order."""
        one_before, two_before = self._reports
        # It starts after the same micro-batch of the half before, on the lane of the half before that one.
        start = self._previous[0] if len(self._previous) > 1 else one_before
        report = self._report(queue, self._position, (message.event, start, two_before), (*ran[-1:], one_before))
        self._reports = (self.start(message, report), one_before)
        self._previous = ran

    async def _report(
        self, queue: PrefetchQueue, position: int, before: Sequence[Event], after: Sequence[Event]
    ) -> None:
        """Tell the planner when a computation starts, once all `before` it have ended, and when it ends."""
        for event in before:
            await ended(event)
        queue.started(position)
        for event in after:
            await ended(event)
        queue.ended(position)

    async def _begin(self) -> None:
        self._pass = await self._program.begin()

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
        for message, ran in self._launched:
            for event in ran:
                if event.error is not None:
                    own = ActorFailed(self.name, message.layer, message.group, event.error)
                    failure = self._arrival_failure(message) or own
                    raise failure from failure.__cause__
