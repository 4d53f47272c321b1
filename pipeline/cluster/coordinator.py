"""The passes of a model whose sections are elsewhere: which sequences share one, and what is delivered of it."""

from collections.abc import Sequence

from pipeline.cluster.cluster_sections import Sections, under_name
from pipeline.cluster.cluster_statistics import NodeCounts
from pipeline.cluster.order_book import OrderBook, allowed_next
from pipeline.generation.admission import Admission
from pipeline.generation.batching import Piece
from pipeline.generation.delivery import Delivery
from pipeline.generation.sequence import RunningSequence


class Coordinator(Delivery):
    """Runs passes of up to `most_tokens` tokens, one after the other. `counted` is what sections have told last."""

    def __init__(self, admission: Admission, sections: Sections, most_tokens: int) -> None:
        super().__init__(admission)
        self._sections = sections
        self._most_tokens = most_tokens
        self._book = OrderBook()
        self.counted: Sequence[NodeCounts | None] = ()

    async def run(self) -> None:
        """Run passes for as long as nothing fails; sections know no sequence when this begins."""
        self._book.forget()
        while True:
            await self._pass(await self.admission.next_pieces(self._most_tokens))

    def left(self, sequence: RunningSequence) -> None:
        """Tell the sections that a caller has gone, if a pass computes its sequence."""
        number = self._book.number(sequence)
        if number is not None and self.admission.in_pass:
            self._sections.withdraw([number])

    async def _pass(self, pieces: Sequence[Piece]) -> None:
        order = self._book.order(pieces, await allowed_next(pieces))
        of_number = {told.number: piece.sequence for told, piece in zip(order.pieces, pieces, strict=True)}
        reports = await self._sections.compute(order)
        self.counted = [report.counted for report in reports]
        batcher = self.admission.batcher
        for section, report in enumerate(reports):
            for number, error in report.failed.items():
                of_number[number].fail(under_name(self._sections.name(section), error))
            for block in report.lost_blocks:
                batcher.pool.lose(block)
            for slot in report.lost_states:
                if batcher.states is not None:
                    batcher.states.lose(slot)
        if any(report.skipped for report in reports):
            self.admission.stopped()  # all are computed anew, but for those that have ended
            return
        outcomes = [(of_number[number], outcome) for report in reports for number, outcome in report.outcomes]
        scores = [(of_number[number], first, found) for report in reports for number, first, found in report.scores]
        self.deliver(pieces, outcomes, scores)
