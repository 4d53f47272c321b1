"""The passes of a section on a node: they begin with orders, and hidden states come from other nodes and go to them."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeAlias, cast

import numpy as np

from actors.core.budget import Slot
from actors.core.errors import said
from actors.core.event import Event
from actors.core.message import READY, GroupKey, Message
from pipeline.cluster.hidden_rows import from_arguments, to_arguments
from pipeline.cluster.orders import PassOrder, SectionReport
from pipeline.cluster.section_calls import SectionUnreachable
from pipeline.cluster.told_sequences import ToldSequence, ToldSequences
from pipeline.engine.runtime import CLOCK
from pipeline.engine.section_waits import SectionWaits
from pipeline.generation.generation_pass import GenerationPass
from pipeline.generation.section import COMPUTE, Section
from pipeline.generation.whole import Arrived

Rows: TypeAlias = Sequence[np.ndarray]
"""The bytes of hidden states as they travel; none where the pass is not needed any more."""
HandOn: TypeAlias = Callable[[int, int, int, Rows], Coroutine[Any, Any, None]]
"""Gives a section the rows of a pass, by its number, which stands before a layer."""


class NodePasses:
    """What a section on a node asks of the whole, see `Passes`. One pass at a time, each by its number.

    Rows may come before the order of their pass. What the disk loses is kept in `lost_blocks` and `lost_states` for the
    next report. In `waited_seconds` passes stood before groups of this section, whose weights were on their way.
    """

    _sequences: ToldSequences
    _ends: Mapping[GroupKey, int]

    def __init__(self, number: int, owners: Sequence[int], hand_on: HandOn) -> None:
        self.number = number
        self.waited_seconds = 0.0
        self._owners = owners
        self._hand_on = hand_on
        self.lost_blocks: list[int] = []
        self.lost_states: list[int] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._orders: asyncio.Queue[PassOrder] = asyncio.Queue()
        self._arrivals: dict[tuple[int, int], asyncio.Future[Rows]] = {}
        self._report: asyncio.Future[SectionReport] | None = None
        self._runs: list[tuple[float, list[Sequence[Event]]]] = []
        self._pass_number = 0
        self._skipped = False

    def take_part(self, sequences: ToldSequences, section: Section) -> None:
        """Let the section compute passes of these sequences; before its hops they come from other sections."""
        self._sequences = sequences
        first, last = dict[int, GroupKey](), dict[int, GroupKey]()
        for layer, part in section.order:
            first.setdefault(layer, (layer, part))
            last[layer] = layer, part
        owners, own = self._owners, self.number
        hops = [first[layer] for layer in first if layer and owners[layer - 1] != own]
        # The last group of each run of layers, and the layer before which the pass stands behind it.
        self._ends = {last[layer]: layer + 1 for layer in last if owners[layer + 1 : layer + 2] not in ((), (own,))}
        section.join(self, own, frozenset(hops), alone=False)

    async def compute(self, order: PassOrder) -> SectionReport:
        """Let a pass go through the section. Raises what ends its line."""
        report: asyncio.Future[SectionReport] = asyncio.get_running_loop().create_future()
        self._report = report
        self._orders.put_nowait(order)
        return await report

    def arrived(self, number: int, layer: int, rows: Rows) -> None:
        """Take the rows of a pass that stands before a layer; those of a pass that is over do not matter."""
        if number >= self._pass_number:
            arrival = self._arrival(number, layer)
            if not arrival.done():
                arrival.set_result(rows)

    def fail(self, error: BaseException) -> None:
        """Tell the coordinator, where it waits, and forget the pass: the lines have stopped."""
        if self._report is not None and not self._report.done():
            self._report.set_exception(error)
        for task in self._tasks:
            task.cancel()
        self._orders = asyncio.Queue()
        self._arrivals.clear()
        self._pass_number += 1  # what still comes for it is late
        self._sequences.forget()

    async def begin(self, section: Section) -> GenerationPass:
        """Wait for the next order; where the embedding is, fetch its rows.

        A sequence whose row cannot be read has ended, and the others' pass is skipped: sections compute alike rows.
        """
        order = await self._orders.get()
        self._pass_number, self._skipped = order.number, False
        for key in [key for key in self._arrivals if key[0] < order.number]:
            del self._arrivals[key]
        pieces = self._sequences.pieces(order)
        fetched: Event = READY
        if section.embedding is not None:
            kept, fetched = await section.fetch(pieces)
            if len(kept) < len(pieces):
                self._skipped = True
                self._sequences.withdraw(piece.number for piece in order.pieces)
        self._runs = [(CLOCK(), [])]
        return section.start(pieces, fetched)

    def ahead(self, section: Section, pass_: GenerationPass) -> GenerationPass | None:
        """None: the next pass begins with an order."""

    async def arrive(self, section: Section, pass_: GenerationPass, message: Message[Slot]) -> Arrived:
        """Wait for the rows of the pass before this group; where none come, nobody needs it any more."""
        rows = await self._arrival(self._pass_number, message.layer)
        if not rows:
            for piece in pass_.pieces:
                cast("ToldSequence", piece.sequence).ended = True
        if pass_.abandoned:
            return Arrived((), ())
        self._runs.append((CLOCK(), []))
        hidden = from_arguments(rows, section.handed_on(pass_).hidden)
        return Arrived(hidden, [READY] * len(hidden))

    def left(
        self, section: Section, pass_: GenerationPass, messages: Sequence[Message[Slot]], ran: Sequence[Event]
    ) -> None:
        """Hand the rows on where the next layer is another section's, as soon as they are computed."""
        self._runs[-1][1].append(ran)
        following = self._ends.get(messages[-1].key)
        if following is None:
            return
        handed_on = section.handed_on(pass_) if ran else Arrived((), ())
        task = asyncio.get_running_loop().create_task(self._send(self._pass_number, following, handed_on))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self, section: Section, pass_: GenerationPass) -> None:
        """Report what has become of the pass in this section."""
        await section.embedded(pass_)
        report = SectionReport(skipped=self._skipped)
        if section.head is None:
            await pass_.last.wait()
        else:
            outcomes, scores = await section.head.outcomes(COMPUTE, pass_), await section.head.scores(pass_)
            choosing = [cast("ToldSequence", piece.sequence) for piece in pass_.choosing]
            report.outcomes = [(one.number, outcomes[one.sampler]) for one in choosing]
            report.scores = [(cast("ToldSequence", run.sequence).number, run.first, found) for run, found in scores]
        self._take_waits()
        sequences = [cast("ToldSequence", piece.sequence) for piece in pass_.pieces]
        report.failed = {one.number: one.error for one in sequences if one.error is not None}
        report.lost_blocks, report.lost_states = [*self.lost_blocks], [*self.lost_states]
        self.lost_blocks.clear()
        self.lost_states.clear()
        if section.embedding is not None:
            section.embedding.may_load()
        if self._report is not None and not self._report.done():
            self._report.set_result(report)

    def _take_waits(self) -> None:
        """Add up for how long the pass, which has ended here, stood before groups that nothing computed."""
        for came, launched in self._runs:
            waits = SectionWaits(1)
            waits.begin(came)
            for ran in launched:
                waits.left(0, ran)
            waits.ended()
            self.waited_seconds += waits.seconds[0]

    def _arrival(self, number: int, layer: int) -> "asyncio.Future[Rows]":
        key = number, layer
        if key not in self._arrivals:
            self._arrivals[key] = asyncio.get_running_loop().create_future()
        return self._arrivals[key]

    async def _send(self, number: int, layer: int, handed_on: Arrived) -> None:
        try:
            for event in handed_on.events:
                await event.wait()
        except Exception:
            return  # the line fails, too, and tells
        section = self._owners[layer]
        try:
            await self._hand_on(section, number, layer, to_arguments(handed_on.hidden))
        except Exception as error:
            if self._report is not None and not self._report.done() and number == self._pass_number:
                self._report.set_exception(SectionUnreachable(section, said(error)))
