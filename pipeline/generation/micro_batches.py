"""The parts in which the rows of a pass are computed, each behind or beside the others."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

from actors.core.event import Event
from actors.core.message import READY
from pipeline.models.pass_rows import Rows
from pipeline.models.ropes import Rope
from pipeline.models.rotary import Rotary
from pipeline.models.row_blocks import RowBlocks


@dataclass(slots=True)
class Block:
    """Rows [begin, end) of a pass, which are computed by one call of each kernel. Some may hold no token."""

    begin: int
    end: int
    rows: Rows = field(init=False)
    rotary: Mapping[Rope, Rotary] = field(init=False)


@dataclass(slots=True)
class MicroBatch:
    """Some of the rows of a pass; `last` is the event of their latest half."""

    blocks: list[Block]
    last: Event = READY

    @property
    def begin(self) -> int:
        """Its first row."""
        return self.blocks[0].begin

    @property
    def end(self) -> int:
        """The row behind its last."""
        return self.blocks[-1].end


def micro_batches(tokens: int, most: int, row_blocks: RowBlocks) -> list[MicroBatch]:
    """Cut the rows of a pass into at most `most` runs of about the same length, none shorter than a block."""
    unit, rows = row_blocks.rows, row_blocks.padded(tokens)
    count = min(most, max(1, rows // unit))
    step = unit if row_blocks.fixed else 1
    cuts = [rows * index // count // step * step for index in range(count + 1)]
    return [MicroBatch([Block(*cut) for cut in row_blocks.cuts(*run)]) for run in itertools.pairwise(cuts)]
