"""One pass on one page, from top to bottom: begin, layers, head, choose, deliver."""

from pipeline.generation.admission import Admission
from pipeline.generation.batching import Piece
from pipeline.generation.delivery import Delivery
from pipeline.generation.generation_pass import GenerationPass
from pipeline.generation.section import Section


class GenerationProgram(Delivery):
    """Begins passes with the pieces that `admission` gives for each, and delivers what `section` has computed."""

    def __init__(self, admission: Admission, section: Section) -> None:
        super().__init__(admission)
        self.section = section
        section.passes = self

    async def begin(self, section: Section) -> GenerationPass:
        """Wait for requests, choose those that share the pass, and fetch the embedding rows of their tokens."""
        pieces: list[Piece] = []
        while not pieces:
            pieces = await self.admission.next_pieces(section.embedding.most_rows)
            pieces, fetched = await section.fetch(pieces)
            if not pieces:
                self.admission.end_pass(finished=False)
        return section.start(pieces, fetched)

    def ahead(self, section: Section, pass_: GenerationPass) -> GenerationPass | None:
        """Begin the next pass where the same sequences go on with whatever tokens the device chooses.

        One that ends with its token has been computed once too often: what comes of that is dropped.
        """
        if not section.may_go_on(pass_) or not (pieces := self.admission.pieces_ahead(pass_.pieces)):
            return None
        return section.go_on(pass_, pieces)

    async def finish(self, section: Section, pass_: GenerationPass) -> None:
        """Choose the next tokens behind the logits of the pass, and deliver them when they are known."""
        outcomes = await section.outcomes(pass_)
        scores = await section.scores(pass_)
        chosen = [(piece.sequence, outcomes[piece.sequence.sampler]) for piece in pass_.choosing]
        self.deliver(pass_.pieces, chosen, [(run.sequence, run.first, found) for run, found in scores])
        section.embedding.may_load()

    async def close(self) -> None:
        """End the threads; the lines must have stopped."""
        self.admission.close()
        await self.section.close()

    def let_go(self) -> None:
        """Hold no views of memory any more."""
        self.section.let_go()
