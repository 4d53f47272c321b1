"""Wiring and supervision: a line is a row of actors joined by channels.

`Line(planner, ...).then(reader, queue=2).then(...)` wires it, `insert` puts a stage of the user's after any actor, and
`run` lives until the source ends, an actor fails, or the caller cancels it.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from actors.core.actor import Actor, Wiring
from actors.core.budget import Budget, BudgetStatistics
from actors.core.channel import ChannelStatistics, Receiver, Sender, open_channel
from actors.core.errors import ActorFailed, LineError
from actors.core.message import Message
from actors.core.operation import cancelled_from_outside, pending_cancellations
from actors.core.ports import Catalog, Clock
from actors.core.stage import Mover, Sink, Source, Stage
from actors.core.trace import ActorStatistics, Meter, Trace


@dataclass(frozen=True, slots=True)
class LineStatistics:
    """The counters of everything in a line that can wait (rule 8), by actor, receiving actor, and budget."""

    actors: dict[str, ActorStatistics]
    channels: dict[str, ChannelStatistics]
    budgets: dict[str, BudgetStatistics]


class Line:
    """A row of actors, from one source over stages and movers to one sink."""

    def __init__(self, source: Source, *, catalog: Catalog, clock: Clock, trace: Trace | None = None) -> None:
        self._catalog = catalog
        self._clock = clock
        self.trace = trace or Trace(recording=False)
        self._actors: list[Actor] = [source]
        self._queues: dict[str, int] = {}
        self._inlets: dict[str, Receiver[Message[Any]]] = {}

    def then(self, actor: Stage | Mover | Sink, *, queue: int = 1) -> "Line":
        """Append an actor, behind a queue of that many messages."""
        if isinstance(self._actors[-1], Sink):
            raise LineError(f"{self._actors[-1].name} ends the line: nothing can come after it")
        return self._place(len(self._actors), actor, queue)

    def insert(self, after: str, stages: Iterable[Stage | Mover], *, queue: int = 1) -> "Line":
        """Put stages of the user's, in this order, behind the actor of that name."""
        names = [actor.name for actor in self._actors]
        if after not in names or isinstance(self._actors[names.index(after)], Sink):
            raise LineError(f"cannot insert after {after!r}: the line has {', '.join(names[:-1])}")
        for index, stage in enumerate(stages, start=names.index(after) + 1):
            if not isinstance(stage, Stage | Mover):
                raise LineError(f"cannot insert {stage!r} after {after!r}: need an instance of Stage or Mover")
            self._place(index, stage, queue)
        return self

    @property
    def actors(self) -> tuple[Actor, ...]:
        """The actors, in order."""
        return tuple(self._actors)

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """The budgets that the line's movers draw on, each once."""
        return _budgets(self._actors)

    async def run(self) -> None:
        """Run all actors until the line has ended. Raises the first ActorFailed; afterwards it can run anew."""
        if not isinstance(self._actors[-1], Sink):
            raise LineError(f"the line ends with {self._actors[-1].name}, which is not a Sink")
        for actor in self._actors:
            if actor.at_work:
                raise LineError(f"{actor.name} is at work in a running line; give each line an instance of its own")
        for actor in self._actors:
            actor.at_work = True
        cancellations = pending_cancellations()
        try:
            for budget in self.budgets:
                await budget.settle()
            async with asyncio.TaskGroup() as tasks:
                started: set[asyncio.Task[None]] = set()
                self._wire(tasks, started)
                actors = [tasks.create_task(actor.run(), name=actor.name) for actor in self._actors]
                # Waiting here, not in the group's exit: Python 3.11 leaves a task that fails there marked as cancelled.
                await asyncio.wait(actors)
                while started:
                    await asyncio.wait(started)
        except BaseExceptionGroup as group:
            if cancelled_from_outside(since=cancellations):
                # A task group that fails while it is being cancelled raises the failure, but the caller wants to stop.
                raise asyncio.CancelledError from group
            cause = _first_cause(group)
            raise cause from cause.__cause__
        finally:
            for budget in self.budgets:
                budget.recall()
            for actor in self._actors:
                actor.at_work = False
            self.statistics()  # operations that have ended since are counted, and traced, here

    def statistics(self) -> LineStatistics:
        """The counters of the present or last run."""
        channels = {name: ChannelStatistics(size, 0, 0, 0, 0.0, 0.0) for name, size in self._queues.items()}
        return LineStatistics(
            {actor.name: actor.statistics() for actor in self._actors},
            channels | {name: inlet.statistics() for name, inlet in self._inlets.items()},
            {budget.name: budget.statistics() for budget in self.budgets},
        )

    def _place(self, index: int, actor: Actor, queue: int) -> "Line":
        if any(actor.name == other.name for other in self._actors):
            raise LineError(f"two actors of the line are named {actor.name!r}: give one of them another `name`")
        if queue < 1:
            raise LineError(f"queue of {actor.name!r}: need a size of at least 1, have {queue}")
        budget = actor.budget if isinstance(actor, Mover) else None
        if budget is not None and any(budget is other or budget.name == other.name for other in self.budgets):
            # Two actors that each hold a slot and wait for another one would wait for each other.
            raise LineError(f"{actor.name} needs a budget of its own: another actor draws on {budget.name!r} already")
        self._actors.insert(index, actor)
        self._queues[actor.name] = queue
        return self

    def _wire(self, tasks: asyncio.TaskGroup, started: "set[asyncio.Task[None]]") -> None:
        inlet: Receiver[Message[Any]] | None = None
        self._inlets = {}
        for budget in self.budgets:
            budget.trace = self.trace
        following: list[Actor | None] = [*self._actors[1:], None]
        for actor, neighbour in zip(self._actors, following, strict=True):
            sender: Sender[Message[Any]] | None = None
            receiver: Receiver[Message[Any]] | None = None
            if neighbour is not None:
                sender, receiver = open_channel(neighbour.name, self._queues[neighbour.name], self._clock, self.trace)
                self._inlets[neighbour.name] = receiver
            actor.catalog = self._catalog
            ahead = _budgets(self._actors[self._actors.index(actor) + 1 :])
            actor.wire(Wiring(inlet, sender, tasks, started, self._clock, Meter(actor.name, self.trace), ahead))
            inlet = receiver


def _budgets(actors: Iterable[Actor]) -> tuple[Budget, ...]:
    found = [actor.budget for actor in actors if isinstance(actor, Mover) and actor.budget is not None]
    return tuple(dict.fromkeys(found))


def _first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The failure that came first; everything after it is a consequence."""
    first = group.exceptions[0]
    for error in group.exceptions:
        if isinstance(error, ActorFailed):
            return error
    return _first_cause(first) if isinstance(first, BaseExceptionGroup) else first
