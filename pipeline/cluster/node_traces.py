"""What nodes have recorded, each by a clock of its own, put together by the clock of the coordinator."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial

from actors.core.line import numbered
from actors.core.trace import Count, Span, Trace
from pipeline.cluster.cluster_sections import SectionDied, Sections
from pipeline.cluster.section_calls import NodeTrace
from pipeline.engine.runtime import CLOCK
from pipeline.errors import PenstockError

logger = logging.getLogger("penstock")
ROUND_TRIPS = 10
"""Calls to each node that ask for its clock; a lane or a copy that holds up the one or the other does no harm."""
NUMBERED = ("queue ", "slots ")
"""How the counters begin that are named after an actor or a budget; others have the same name in every section."""


@dataclass(frozen=True, slots=True)
class ClockOffset:
    """By how many `seconds` a clock is ahead of the one here, give or take `uncertain_seconds`."""

    seconds: float
    uncertain_seconds: float


async def measure_offset(there: Callable[[], Awaitable[float]]) -> ClockOffset:
    """Compare a clock that is asked for its seconds with the one here.

    It is taken to answer in the middle of the call, so it is known to half the length of that; of several calls the
    shortest counts (F. Cristian, "Probabilistic clock synchronization", 1989).
    """
    offsets = []
    for _ in range(ROUND_TRIPS):
        asked = CLOCK()
        seconds = await there()
        answered = CLOCK()
        offsets.append(ClockOffset(seconds - (asked + answered) / 2, (answered - asked) / 2))
    return min(offsets, key=lambda offset: offset.uncertain_seconds)


class NodeTraces:
    """Recordings of all sections. `trace` has what they recorded when that has ended, and not before.

    `offsets` are those of the clocks, by section, as they were then.
    """

    def __init__(self, sections: Sections, count: int) -> None:
        """There are so many sections."""
        self.trace = Trace(capacity=None, recording=False)
        self.offsets: Mapping[int, ClockOffset] = {}
        self._sections = sections
        self._numbers = range(count)

    @contextlib.asynccontextmanager
    async def recording(self) -> AsyncIterator[None]:
        """Let all sections record what happens within.

        Raises SectionDied, or NotBegun, where one has died meanwhile: then `trace` has what the others did. What is
        raised within comes first.
        """
        self.trace.clear()
        self.offsets = {}
        try:
            await asyncio.gather(*map(self._sections.record, self._numbers))
            yield
        except BaseException:
            try:
                await self._end()
            except PenstockError as error:
                logger.warning("the recording is not whole: %s", error)
            raise
        await self._end()

    async def _end(self) -> None:
        """End all, and take what has come of them. Raises the first failure, of those that died the one that did."""
        told = await asyncio.gather(*map(self._sections.recorded, self._numbers), return_exceptions=True)
        traces = {number: one for number, one in enumerate(told) if isinstance(one, NodeTrace)}
        self.offsets = {number: await measure_offset(partial(self._sections.clock, number)) for number in traces}
        await asyncio.to_thread(self._take, traces)
        errors = [one for one in told if isinstance(one, BaseException)]
        for error in sorted(errors, key=lambda one: not isinstance(one, SectionDied)):
            raise error

    def _take(self, traces: Mapping[int, NodeTrace]) -> None:
        spans, counts = list[Span](), list[Count]()
        for section, told in traces.items():
            ahead, number = self.offsets[section].seconds, section if len(self._numbers) > 1 else None
            for span in told.spans:
                actor, started, ended = numbered(span.actor, number), span.started - ahead, span.ended - ahead
                spans.append(span._replace(actor=actor, started=started, ended=ended))
            for count in told.counts:
                counter = count.counter
                if counter.startswith(NUMBERED):
                    counter = numbered(counter, number)
                counts.append(count._replace(counter=counter, at=count.at - ahead))
        spans.sort(key=lambda span: span.ended)
        counts.sort(key=lambda count: count.at)
        self.trace.take(spans, counts, sum(told.dropped for told in traces.values()))
