"""One pass on one page, from top to bottom: begin, layers, head, choose, deliver."""

from pipeline.errors import RequestError
from pipeline.generation.admission import Admission
from pipeline.generation.batching import Piece
from pipeline.generation.generation_pass import GenerationPass
from pipeline.generation.rows_sent import Outcome
from pipeline.generation.section import Section
from pipeline.generation.sequence import RunningSequence


class GenerationProgram:
    """Begins passes with the pieces that `admission` gives for each, and delivers what `section` has computed.

    `passes` counts those that are through, `computed_tokens` what they carried, and `tokens` what was delivered.
    """

    def __init__(self, admission: Admission, section: Section) -> None:
        self.admission = admission
        self.section = section
        section.passes = self
        self.passes = 0
        self.tokens = 0
        self.computed_tokens = 0

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
        self.passes += 1
        outcomes = await section.outcomes(pass_)
        scores = await section.scores(pass_)
        self.computed_tokens += sum(len(piece.token_ids) for piece in pass_.pieces)
        self.admission.batcher.computed(pass_.pieces)
        for run, found in scores:
            run.sequence.score(run.first, found)
        for sequence in [piece.sequence for piece in pass_.choosing]:
            self._deliver(sequence, outcomes[sequence.sampler])
        for sequence in [piece.sequence for piece in pass_.pieces if not piece.logit_rows]:
            sequence.end_without_answer()
        self.admission.end_pass(finished=True)
        section.embedding.may_load()

    def _deliver(self, sequence: RunningSequence, outcome: Outcome) -> None:
        """Hand the chosen token to its sequence. A request whose token could not be chosen ends alone."""
        if isinstance(outcome, RequestError):
            sequence.fail(outcome)
        elif not sequence.ended:
            self.tokens += 1
            sequence.accept(outcome)

    async def close(self) -> None:
        """End the threads; the lines must have stopped."""
        self.admission.close()
        await self.section.close()

    def let_go(self) -> None:
        """Hold no views of memory any more."""
        self.section.let_go()
