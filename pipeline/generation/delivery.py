"""Hands on what passes have given: tokens to the sequences that wait for them, and room to those that wait for that."""

from collections.abc import Iterable, Sequence

from pipeline.errors import RequestError
from pipeline.generation.admission import Admission
from pipeline.generation.batching import Piece
from pipeline.generation.prompt_scores import Found
from pipeline.generation.rows_sent import Outcome
from pipeline.generation.sequence import RunningSequence


class Delivery:
    """What comes of the passes whose pieces `admission` gives.

    `passes` counts those that are through, `computed_tokens` what they carried, and `tokens` what was delivered.
    """

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.passes = 0
        self.tokens = 0
        self.computed_tokens = 0

    def deliver(
        self,
        pieces: Sequence[Piece],
        outcomes: Iterable[tuple[RunningSequence, Outcome]],
        scores: Iterable[tuple[RunningSequence, int, Found]],
    ) -> None:
        """End a pass with these pieces: `outcomes` are tokens that were chosen, or why none was; `scores` those of
        prompts, each from a position on. A request whose token could not be chosen ends alone.
        """
        self.passes += 1
        self.computed_tokens += sum(len(piece.token_ids) for piece in pieces)
        self.admission.batcher.computed(pieces)
        for sequence, first, found in scores:
            sequence.score(first, found)
        for sequence, outcome in outcomes:
            if isinstance(outcome, RequestError):
                sequence.fail(outcome)
            elif not sequence.ended:
                self.tokens += 1
                sequence.accept(outcome)
        for sequence in [piece.sequence for piece in pieces if not piece.logit_rows]:
            sequence.end_without_answer()
        self.admission.end_pass(finished=True)
