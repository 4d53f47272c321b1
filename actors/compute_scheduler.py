"""Runs the program on the groups in compute order, and frees their slots.

Takes:  messages in a device slot, whose bytes may still be on their way.
Gives:  nothing: the line ends here, tokens leave through the program.
Holds:  the state of the pass that it is in, the groups that came before their turn, and those that stay.
Fails:  when a computation failed, naming the group; or the upload before it, naming the uploader.
"""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

from actors.core.budget import Slot
from actors.core.errors import ActorFailed
from actors.core.event import Event
from actors.core.message import READY, GroupKey, Message
from actors.core.ports import Program
from actors.core.prefetch import PrefetchQueue
from actors.core.stage import Sink
from actors.core.stretch import has_arrived, stretches


class ComputeScheduler(Sink):
    """Launches each group's computation behind the group's event, so that the host never stands between two groups.

    Where nothing moves, a pass is launched before anybody has the tokens of the one before, so that work on these
    tokens overlaps with it. A blocking scheduler checks each group in first. With a queue it reports every start and
    end to the planner; without one it keeps groups that stay, and computes several as one unless a trace records.
    """

    def __init__(self, program: Program, *, blocking: bool = False, queue: PrefetchQueue | None = None) -> None:
        self._program = program
        self._blocking = blocking
        self._queue = queue
        self._restart()

    async def run(self) -> None:
        """As every actor; the first pass is begun while its first group is still on its way."""
        self._pass: Any = None
        self._begun = self.start(None, self._begin())
        await super().run()

    def _restart(self) -> None:
        self._position = 0
        self._parked, self._kept = dict[GroupKey, Message[Slot]](), dict[GroupKey, Message[Slot]]()
        self._launched: list[tuple[Message[Slot], Sequence[Event]]] = []
        self._unfinished: list[tuple[Any, Sequence[tuple[Message[Slot], Sequence[Event]]]]] = []
        self._previous: Sequence[Event] = ()
        self._reports: tuple[Event, Event] = (READY, READY)

    async def take(self, message: Message[Slot]) -> None:
        """Launch the group, and those behind it that stay or came before their turn; or park it until its own."""
        if message.seq == 0:
            self._restart()
        self._parked[message.key] = message
        order = self._program.order
        while (following := self._parked.pop(order[self._position % len(order)], None)) is not None:
            if following.stands_for == 1:
                await self._compute((following,))
                continue
            for stretch in stretches(self._groups(following, self._position), self._program):
                await self._compute(stretch)
                if self._launched and following.stands_for < len(order):  # requests come and leave meanwhile
                    await asyncio.sleep(0)

    def _groups(self, message: Message[Slot], position: int) -> Iterator[Message[Slot]]:
        """The groups that `message`, of the group at that position, stands for: its own, and those behind it."""
        yield message
        for index in range(1, message.stands_for):
            kept = self._kept[self._program.order[position % len(self._program.order) + index]]
            yield Message(*kept.key, message.seq + index, kept.at, READY if has_arrived(kept) else kept.event)

    async def _compute(self, groups: Sequence[Message[Slot]]) -> None:
        """Launch groups: the first when a pass has begun; behind the last, wait for results."""
        if self._pass is None or not self._position:
            await self.stalled("request", groups[0], self._begin() if self._position else self._begun.wait())
        if groups[0].key in self._program.hops:
            await self.stalled("hop", groups[0], self._program.arrive(self._pass, groups[0]))
        ran: Sequence[Event] = ()
        if len(groups) > 1 and not self._blocking and not self.wiring.meter.recording and all(map(has_arrived, groups)):
            ran = self._program.stretch(self._pass, groups)
        if ran:
            self._leave(groups, ran)
        else:
            for message in groups:
                await self._launch(message)
        self._position += len(groups)
        if self._position % len(self._program.order) == 0:
            await self._end(groups[-1])

    async def _launch(self, message: Message[Slot]) -> None:
        """Launch one group by itself, when what it needs beside its weights is on the way."""
        await self.host_is_through(message, message.at)
        if (preparing := self._program.prepare(self._pass, message)) is not None:
            await self.stalled("companion", message, preparing)
        if self._blocking:
            await self.stalled("check", message, self._program.check_in(self._pass, message))
        ran = self._program.step(self._pass, message)
        self._leave((message,), ran)
        if self._queue is not None:
            self._tell(self._queue, message, ran)

    async def _end(self, last: Message[Slot]) -> None:
        """Behind the last group of a pass finish the one before; then this one, unless the next begins before that."""
        self._unfinished.append((self._pass, self._launched))
        self._launched = []
        if len(self._unfinished) > 1:
            await self.stalled("result", last, self._finish())
        self._pass = self._program.ahead(self._pass)
        if self._pass is None:
            await self.stalled("result", last, self._finish())

    def _leave(self, groups: Sequence[Message[Slot]], ran: Sequence[Event]) -> None:
        """Give back what comes again: the first group of a pass, and what moves. What stays is kept."""
        self._launched.append((groups[0], ran))
        if self._queue is not None or not groups[-1].at.stays or len(self._launched) == 1:
            self.give_back(groups[0], ran)
            groups = groups[1:]
        if groups:
            self.keep(groups, ran)
            self._kept.update((message.key, message) for message in groups)

    def _tell(self, queue: PrefetchQueue, message: Message[Slot], ran: Sequence[Event]) -> None:
        """Report a computation's start and end. A report waits for the one before, so they come in compute order."""
        one_before, two_before = self._reports
        # It starts after the same micro-batch of the half before, on the lane of the half before that one.
        start = self._previous[0] if len(self._previous) > 1 else one_before
        report = queue.report(self._position, (message.event, start, two_before), (*ran[-1:], one_before))
        self._reports = (self.start(message, report), one_before)
        self._previous = ran

    async def _begin(self) -> None:
        self._pass = await self._program.begin()

    async def _finish(self) -> None:
        pass_, launched = self._unfinished.pop(0)
        try:
            await self._program.finish(pass_)
        except Exception as error:
            if not isinstance(error, ActorFailed):
                self._blame(launched)
            raise

    def _blame(self, launched: Sequence[tuple[Message[Slot], Sequence[Event]]]) -> None:
        """Name the first group that failed in a pass: everything behind it failed for the same reason."""
        for message, ran in launched:
            if (error := next((event.error for event in ran if event.error is not None), None)) is not None:
                failure = self._arrival_failure(message) or ActorFailed(self.name, *message.key, error)
                raise failure from failure.__cause__
