"""Where the rows of a pass stand and go, and how a GPU shares them out to the programs of its kernels.

Shape letters in names: T rows of this pass, B blocks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

TILE = 128
"""Tokens of a prompt that a GPU computes together, of one cell of so many positions."""
TILE_PART, MOST_TILE_PARTS = 2048, 8
"""The positions that a cell sees are cut into at most so many parts, each of a multiple of so many."""
FEW_TILE_ROWS = 8192
"""Parts are computed beside each other where the rows of all tiles, times the heads, are no more: too few for a GPU."""
PART, MOST_PARTS = 256, 32
"""The positions of a token of an answer are cut into at most so many parts, each of a multiple of so many."""
FEW_PARTS = 4
"""Short contexts have no more, and fewer programs are launched for them."""
ANSWERS_AT_ONCE, CPU_ANSWERS_AT_ONCE = 256, 32
"""More answers than that, which are computed anew after a failure, take turns: their parts need memory. On a CPU, where
they are as many as it takes of `PART`, so are those of more requests."""


@dataclass(frozen=True, slots=True)
class SequenceRows:
    """Rows [begin, end) of a pass belong to one sequence, at positions from `start` on, of which `prompt_tokens` are
    its prompt.

    `blocks_B` is its block table, int64 on the device: position p is row p % P of block p // P of the table. Once it
    has `ended`, what comes out for its rows is not used. A recurrent layer begins with the state in the slot
    `state_read`, with zeros where that is -1, and leaves the state behind the last row in the slot `state_write`; it
    also puts the state behind a row into another slot for each (row, slot) of `snapshots`, in ascending order. The
    positions that a layer has chosen to look at stay in `choices` for the layers behind it.
    """

    begin: int
    end: int
    start: int
    prompt_tokens: int
    blocks_B: torch.Tensor
    ended: Callable[[], bool] = lambda: False
    state_read: int = -1
    state_write: int = -1
    snapshots: Sequence[tuple[int, int]] = ()
    choices: dict[int, torch.Tensor] = field(default_factory=dict)

    @property
    def prompts(self) -> int:
        """How many of its rows are tokens of its prompt: the first ones."""
        return min(max(self.prompt_tokens - self.start, 0), self.end - self.begin)


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the rows of a pass stand and go, and whose they are. Those behind its `tokens` belong to none.

    `numbers`, int64 [rows, columns], and `tables`, [sequences, B], are on the device. Of each row: its position, the
    block that it goes to, and the table of its sequence; -1, -1 and 0 behind the last token. Then follow lists, each in
    a column from row 0 on: `answers` rows that are computed one by one, others with them, and `tiles` of
    prompts, the first row and the tokens of each. No answer looks back at more than `parts` parts, and no tile at more
    than `tile_parts`. The next four columns are for recurrent layers, again of each row: the slots of the state that it
    begins with, if it is the first of its sequence here, and of that behind the last; how many rows follow each other
    from it on, itself included, 0 if it is not the first; and the slot that gets the state behind it. Without one,
    the slots are -1. The last column lists from row 0 on the first row of each sequence, and -1 behind them.
    """

    numbers: torch.Tensor
    tables: torch.Tensor
    tokens: int
    answers: int
    tiles: int
    parts: int
    tile_parts: int
    by_sequence: Callable[[], Sequence[SequenceRows]]


def parts_for(tokens: int) -> int:
    """How many parts are launched for answers that look back at no more than so many tokens."""
    return FEW_PARTS if tokens <= FEW_PARTS * PART else MOST_PARTS


def tile_parts_for(tokens: int) -> int:
    """The same for tiles."""
    return min(-(-tokens // TILE_PART), MOST_TILE_PARTS)


def few_rows(device: torch.device) -> Rows:
    """Two rows to try kernels with, of a KV of one block and two slots of state: a prompt's token at position 0, and an
    answer's."""
    numbers = torch.tensor(
        [[0, 0, 0, 1, 0, 1, 0, -1, 0, 1, -1, 0], [0, 0, 0, -1, 0, 0, 0, -1, 1, 1, -1, 1]], device=device
    )
    tables = torch.zeros(1, 1, dtype=torch.int64, device=device)
    sequences = [
        SequenceRows(0, 1, 0, 1, tables[0], state_write=0),
        SequenceRows(1, 2, 0, 0, tables[0], state_write=1),
    ]
    return Rows(numbers, tables, 2, 1, 1, FEW_PARTS, 2, lambda: sequences)
