"""The state of one pass."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from actors.core.event import Event
from actors.core.message import READY
from pipeline.generation.batching import Piece
from pipeline.generation.micro_batches import Block, MicroBatch
from pipeline.generation.prompt_scores import ScoredRows
from pipeline.generation.rows_sent import RowsSent
from pipeline.generation.sampling import Sampler


@dataclass(slots=True)
class GenerationPass:
    """The state of one pass over T tokens, of one or more sequences.

    One that is `ahead` begins before the host knows its tokens. `in_stretches` counts groups that were launched so.
    `chosen_of` is the layer whose router's choice was launched with the attention before it, and `added_of` that whose
    sum was launched with its last experts; -1 for none.
    """

    pieces: list[Piece]
    parts: list[MicroBatch]
    rows: RowsSent | None = None
    scored: ScoredRows | None = None
    embedded: Event = READY
    ahead: bool = False
    in_stretches: int = 0
    chosen_of: int = -1
    added_of: int = -1

    @property
    def blocks(self) -> list[Block]:
        """All blocks of its rows."""
        return [block for part in self.parts for block in part.blocks]

    @property
    def cuts(self) -> list[tuple[int, int]]:
        """The first row of each block, and the row behind its last."""
        return [(block.begin, block.end) for block in self.blocks]

    @property
    def tokens(self) -> int:
        """How many tokens it carries: one in each of its first rows."""
        return sum(len(piece.token_ids) for piece in self.pieces)

    @property
    def padded_rows(self) -> int:
        """How many rows it computes, those behind the last token too."""
        return self.parts[-1].end

    @property
    def choosing(self) -> list[Piece]:
        """The pieces that ask for logits, to choose a token from them; none where the pass is abandoned."""
        return [] if self.abandoned else [piece for piece in self.pieces if piece.logit_rows]

    @property
    def last_rows(self) -> list[tuple[Sampler, int]]:
        """Whose tokens are chosen, and from which row of logits: the last of those that the sequence asks for."""
        ends = itertools.accumulate(piece.logit_rows for piece in self.pieces)
        of_pieces = zip(self.pieces, ends, strict=True)
        return [(piece.sequence.sampler, end - 1) for piece, end in of_pieces if piece.logit_rows]

    @property
    def abandoned(self) -> bool:
        """Whether its results are not needed: all its sequences have ended."""
        return all(piece.sequence.ended for piece in self.pieces)

    @property
    def last(self) -> Event:
        """The event of the latest step of the last micro-batch, which comes behind all before it."""
        return self.parts[-1].last


def token_ids(pieces: Sequence[Piece]) -> list[int]:
    """The tokens of all pieces, in their order."""
    return [token_id for piece in pieces for token_id in piece.token_ids]
