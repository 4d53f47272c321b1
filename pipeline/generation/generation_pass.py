"""The state of one pass: whose tokens it carries, in which parts they are computed, and how far they are."""

import itertools
from dataclasses import dataclass, field

import torch

from actors.core.event import Event
from actors.core.message import READY
from pipeline.generation.batching import Piece
from pipeline.models.attention import Rows
from pipeline.models.rotary import Rotary
from pipeline.models.row_blocks import RowBlocks


@dataclass(slots=True)
class Block:
    """Rows [begin, end) of a pass, which are computed by one call of each kernel. Some may hold no token."""

    begin: int
    end: int
    rows: Rows = field(init=False)
    rotary: Rotary = field(init=False)


@dataclass(slots=True)
class MicroBatch:
    """Some of the rows of a pass; `last` is the event of their latest half."""

    blocks: list[Block]
    last: Event = READY


@dataclass(slots=True)
class GenerationPass:
    """The state of one pass over T tokens, of one or more sequences.

    `hidden_TD` is made once and then written in place: a micro-batch goes from lane to lane, and memory that one CUDA
    stream frees while another still reads it would be handed out again too early.
    """

    pieces: list[Piece]
    parts: list[MicroBatch]
    embedded: Event = READY
    hidden_TD: torch.Tensor = field(init=False)
    normed_RD: torch.Tensor = field(init=False)
    head_rows: int = 0

    @property
    def choosing(self) -> list[Piece]:
        """The pieces that ask for logits, to choose a token from them; none where the pass is abandoned."""
        return [] if self.abandoned else [piece for piece in self.pieces if piece.logit_rows]

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for its results any more."""
        return all(piece.sequence.ended for piece in self.pieces)

    @property
    def last(self) -> Event:
        """The event of the latest step of the last micro-batch, which comes behind all before it."""
        return self.parts[-1].last


def micro_batches(tokens: int, most: int, row_blocks: RowBlocks) -> list[MicroBatch]:
    """Cut the rows of a pass into at most `most` runs of about the same length, none shorter than a block."""
    unit, rows = row_blocks.rows, row_blocks.padded(tokens)
    count = min(most, max(1, rows // unit))
    step = unit if row_blocks.fixed else 1
    cuts = [rows * index // count // step * step for index in range(count + 1)]
    return [MicroBatch([Block(*cut) for cut in row_blocks.cuts(*run)]) for run in itertools.pairwise(cuts)]
