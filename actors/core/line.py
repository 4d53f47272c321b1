"""Wiring and supervision: a line is a row of actors joined by channels.

`Line(planner, ...).then(reader, queue=2).then(...)` wires it, `insert` puts a stage of the user's after any actor, and
`run` lives until the source ends, an actor fails, or the caller cancels it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from actors.core.actor import Actor, Wiring
from actors.core.budget import Budget, BudgetStatistics
from actors.core.channel import ChannelStatistics, Receiver, Sender, open_channel
from actors.core.crew import STOP_SECONDS, Crew, Over, stop
from actors.core.errors import LineError
from actors.core.event import Clock
from actors.core.message import Message
from actors.core.ports import Catalog
from actors.core.stage import Mover, Sink, Source, Stage
from actors.core.trace import ActorStatistics, Meter, Trace


@dataclass(frozen=True, slots=True)
class LineStatistics:
    """The counters of everything in a line that can wait (rule 8), by actor, receiving actor, and budget."""

    actors: dict[str, ActorStatistics]
    channels: dict[str, ChannelStatistics]
    budgets: dict[str, BudgetStatistics]

    def __or__(self, other: "LineStatistics") -> "LineStatistics":
        """The counters of two lines whose names differ, see `check_names`."""
        return LineStatistics(self.actors | other.actors, self.channels | other.channels, self.budgets | other.budgets)


class Line:
    """A row of actors, from one source over stages and movers to one sink.

    One of several lines that are alike has a `number`, which its actors bear behind their names.
    """

    def __init__(
        self,
        source: Source,
        *,
        catalog: Catalog,
        clock: Clock,
        trace: Trace | None = None,
        number: int | None = None,
    ) -> None:
        self._catalog = catalog
        self._clock = clock
        self._number = number
        self.trace = trace or Trace(recording=False)
        source.name = numbered(source.name, number)
        self._actors: list[Actor] = [source]
        self._queues: dict[str, int] = {}
        self._inlets: dict[str, Receiver[Message[Any]]] = {}
        self._beside: dict[str, Meter] = {}
        self._crew: Crew | None = None

    def then(self, actor: Stage | Mover | Sink, *, queue: int = 1) -> "Line":
        """Append an actor, behind a queue of that many messages."""
        if isinstance(self._actors[-1], Sink):
            raise LineError(f"{self._actors[-1].name} ends the line: nothing can come after it")
        return self._place(len(self._actors), actor, queue)

    def insert(self, after: str, stages: Iterable[Stage | Mover]) -> "Line":
        """Put stages of the user's, in this order, behind the actor of that name, which is said without a number.

        Each has a queue of one message.
        """
        after = numbered(after, self._number)
        names = [actor.name for actor in self._actors]
        if after not in names or isinstance(self._actors[names.index(after)], Sink):
            raise LineError(f"cannot insert after {after!r}: the line has {', '.join(names[:-1])}")
        for index, stage in enumerate(stages, start=names.index(after) + 1):
            if not isinstance(stage, Stage | Mover):
                raise LineError(f"cannot insert {stage!r} after {after!r}: need an instance of Stage or Mover")
            self._place(index, stage, queue=1)
        return self

    def count_beside(self, name: str) -> Meter:
        """Count work that none of the actors does as if one of that name did it, in statistics and in the trace."""
        name = numbered(name, self._number)
        return self._beside.setdefault(name, Meter(name, self.trace))

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
        await run_beside((self,))

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Keep the actors for one run; at its end take back every slot. Raises LineError when they are at work."""
        if not isinstance(self._actors[-1], Sink):
            raise LineError(f"the line ends with {self._actors[-1].name}, which is not a Sink")
        for actor in self._actors:
            if actor.at_work:
                raise LineError(f"{actor.name} is at work in a running line; give each line an instance of its own")
        for actor in self._actors:
            actor.at_work = True
        try:
            yield
        finally:
            for budget in self.budgets:
                budget.recall()
            for actor in self._actors:
                actor.at_work = False
            self.statistics()  # operations that have ended since are counted, and traced, here

    async def at_end(self) -> None:
        """Wait until no task of the last run is left. Raises ActorFailed when one that was stopped does not end."""
        if self._crew is not None:
            await stop([self._crew])
            for named, _ in self._crew.tasks.values():
                raise named(LineError(f"was stopped, but has not ended within {STOP_SECONDS:g} s"))

    def begin(self, over: Over) -> Crew:
        """Let the actors begin their work in one run, which is over when `over` is."""
        self._crew = Crew(over)
        self._wire(self._crew)
        for actor in self._actors:
            self._crew.begin(actor.run(), actor._failed, actor._left, actor.name)
        return self._crew

    def statistics(self) -> LineStatistics:
        """The counters of the present or last run."""
        channels = {name: ChannelStatistics(size, 0, 0, 0, 0.0, 0.0) for name, size in self._queues.items()}
        return LineStatistics(
            {actor.name: actor.statistics() for actor in self._actors}
            | {name: meter.statistics() for name, meter in self._beside.items()},
            channels | {name: inlet.statistics() for name, inlet in self._inlets.items()},
            {budget.name: budget.statistics() for budget in self.budgets},
        )

    def _place(self, index: int, actor: Actor, queue: int) -> "Line":
        actor.name = numbered(actor.name, self._number)
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

    def _wire(self, crew: Crew) -> None:
        for budget in self.budgets:
            budget.trace = self.trace
        outlets: dict[str, Sender[Message[Any]]] = {}
        for name, size in self._queues.items():
            outlets[name], self._inlets[name] = open_channel(name, size, self._clock, self.trace)
        for index, actor in enumerate(self._actors, start=1):
            behind, meter = self._actors[index:], Meter(actor.name, self.trace)
            inlet, outlet = self._inlets.get(actor.name), outlets[behind[0].name] if behind else None
            actor.catalog = self._catalog
            actor.wire(Wiring(inlet, outlet, crew, self._clock, meter, _budgets(behind)))


@contextlib.asynccontextmanager
async def running(lines: Sequence[Line]) -> AsyncIterator[Over]:
    """Run lines, and give what tells the end of the first; leaving stops them all, after which they can run anew.

    The caller hears of a failure at once, but leaves only when all tasks have stopped, or will not. Raises LineError
    when a line runs already, and ActorFailed when one from its last run has not ended.
    """
    over: Over = asyncio.get_running_loop().create_future()
    crews: list[Crew] = []
    with contextlib.ExitStack() as stack:
        for line in lines:
            stack.enter_context(line.at_work())
        for line in lines:
            await line.at_end()  # a task that was stopped may still touch its slot (rule 6)
            for budget in line.budgets:
                await budget.settle()
        try:
            crews += [line.begin(over) for line in lines]
            yield over
        finally:
            over.cancel()
            await stop(crews)


async def run_beside(lines: Sequence[Line]) -> None:
    """Run lines until one has ended, then stop the others. Raises the first failure."""
    async with running(lines) as over:
        failure = await over
    if failure is not None:
        raise failure from failure.__cause__


def numbered(name: str, number: int | None) -> str:
    """What an actor or a budget is called in the line of this number; as ever, where there is one line."""
    return name if number is None else f"{name} {number}"


def _budgets(actors: Iterable[Actor]) -> tuple[Budget, ...]:
    found = [actor.budget for actor in actors if isinstance(actor, Mover) and actor.budget is not None]
    return tuple(dict.fromkeys(found))


def check_names(lines: Sequence[Line]) -> None:
    """Raise LineError if two actors or two budgets of lines beside each other have the same name.

    Statistics and traces of all lines are kept by name: the second would overwrite the first.
    """
    for what, names in (
        ("actors", [actor.name for line in lines for actor in line.actors]),
        ("budgets", [budget.name for line in lines for budget in line.budgets]),
    ):
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise LineError(f"two {what} of lines beside each other are named {twice[0]!r}: give one another name")
