"""The program of a model: begins a pass with requests, hands it from section to section, and delivers its tokens."""

import asyncio
import weakref
from collections.abc import Mapping, Sequence

from actors.core.budget import Slot
from actors.core.event import Event
from actors.core.message import Message
from pipeline.generation.admission import Admission
from pipeline.generation.batching import Piece
from pipeline.generation.delivery import Delivery
from pipeline.generation.generation_pass import GenerationPass
from pipeline.generation.prompt_scores import Found, ScoredRun
from pipeline.generation.rows_sent import Outcome
from pipeline.generation.sampling import Sampler
from pipeline.generation.section import COMPUTE, Section
from pipeline.generation.shared_pass import SharedPass
from pipeline.generation.whole import Arrived


class GenerationProgram(Delivery):
    """Begins passes with the pieces that `admission` gives for each, and delivers what the sections have computed.

    The first section has the embedding, and one has the head. Several compute the `shared` pass in turn.
    """

    def __init__(self, admission: Admission, sections: Sequence[Section], shared: SharedPass) -> None:
        super().__init__(admission)
        self.sections = tuple(sections)
        self._shared = shared
        for number, (section, hops) in enumerate(zip(sections, shared.hops, strict=True)):
            # A cycle of references would hold KV blocks until the garbage collector runs.
            section.join(weakref.proxy(self), number, hops, alone=len(sections) == 1)

    async def begin(self, section: Section) -> GenerationPass:
        """Wait for requests, choose those that share the pass, and fetch the embedding rows of their tokens."""
        if section.embedding is None:
            return await self._shared.begun(section.number)
        await self._shared.all_through()
        pieces: list[Piece] = []
        while not pieces:
            pieces = await self.admission.next_pieces(section.embedding.most_rows)
            pieces, fetched = await section.fetch(pieces)
            if not pieces:
                self.admission.end_pass(finished=False)
        first, *others = self.sections
        states = [first.start(pieces, fetched), *(other.start(pieces) for other in others)]
        self._shared.begin(states)
        return states[0]

    def ahead(self, section: Section, pass_: GenerationPass) -> GenerationPass | None:
        """Begin the next pass where the same sequences go on, whichever tokens the device chooses.

        A sequence that its next token ends has been computed once too often: that result is dropped.
        """
        if not section.alone or (head := section.head) is None or not section.may_go_on(pass_, head):
            return None
        if not (pieces := self.admission.pieces_ahead(pass_.pieces)):
            return None
        return section.go_on(pass_, head, pieces)

    async def arrive(self, section: Section, pass_: GenerationPass, message: Message[Slot]) -> Arrived:
        """Wait until all before the group is launched; returns the hidden states of the section that launched it."""
        before, state = await self._shared.arrive(message.key)
        return self.sections[before].handed_on(state)

    def left(
        self, section: Section, pass_: GenerationPass, messages: Sequence[Message[Slot]], ran: Sequence[Event]
    ) -> None:
        """Hand the pass on, to the next section where that has the next group."""
        for message in messages:
            self._shared.left(message.key, ran)

    async def finish(self, section: Section, pass_: GenerationPass) -> None:
        """Choose the next tokens behind the logits of the pass, and deliver them when they are known.

        Sections without the head wait until all that they have launched has ended.
        """
        try:
            outcomes, scores = await self._computed(section, pass_)
        except Exception:
            if self._shared.failed_in() in (None, section.number):
                raise
            await asyncio.Event().wait()  # the section in which it failed first reports it, and all lines are stopped
        if section.head is not None:
            await self._shared.others_through(section.number)
            chosen = [(piece.sequence, outcomes[piece.sequence.sampler]) for piece in pass_.choosing]
            self.deliver(pass_.pieces, chosen, [(run.sequence, run.first, found) for run, found in scores])
        if section.embedding is not None:
            section.embedding.may_load()
        self._shared.through(section.number)

    async def _computed(
        self, section: Section, pass_: GenerationPass
    ) -> tuple[Mapping[Sampler, Outcome], list[tuple[ScoredRun, Found]]]:
        """Wait for all that a section has launched; returns what its head gives."""
        await section.embedded(pass_)
        if section.head is None:
            await pass_.last.wait()
            return {}, []
        return await section.head.outcomes(COMPUTE, pass_), await section.head.scores(pass_)

    def waited_seconds(self, section: int) -> float | None:
        """For how long passes have waited for a section; None for the only one."""
        return None if len(self.sections) == 1 else self._shared.waits.seconds[section]

    async def close(self) -> None:
        """End the threads; the lines must have stopped."""
        self.admission.close()
        for section in self.sections:
            await section.close()

    def let_go(self) -> None:
        """Hold no views of memory any more."""
        for section in self.sections:
            section.let_go()
