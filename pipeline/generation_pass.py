"""The state of one pass: whose tokens it carries, in which parts they are computed, and how far they are."""

import itertools
from dataclasses import dataclass, field

import torch

from actors.core.message import READY
from actors.core.ports import Event
from pipeline.models.attention import Rows
from pipeline.models.ops import Rotary
from pipeline.sequences.batching import Piece


@dataclass(slots=True)
class MicroBatch:
    """Tokens [begin, end) of a pass; `last` is the event of its latest half."""

    begin: int
    end: int
    last: Event = READY
    rows: Rows = field(init=False)
    rotary: Rotary = field(init=False)


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
    def sampling(self) -> list[Piece]:
        """Those whose last token gets a successor, one row of logits each."""
        return [piece for piece in self.pieces if piece.samples]

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for its results any more."""
        return all(piece.sequence.ended for piece in self.pieces)

    @property
    def last(self) -> Event:
        """The event of the latest step of the last micro-batch, which comes behind all before it."""
        return self.parts[-1].last


def micro_batches(tokens: int, most: int) -> list[MicroBatch]:
    """Cut the tokens of a pass into `most` runs of about the same length; one token makes one."""
    count = min(most, tokens)
    cuts = [tokens * index // count for index in range(count + 1)]
    return [MicroBatch(begin, end) for begin, end in itertools.pairwise(cuts)]
