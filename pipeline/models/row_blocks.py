"""Into how many rows the tokens of a pass are put for computing, so that a row's bits do not depend on the others.

Libraries choose the kernel of a matrix product, a norm or a sum by the number of rows, and kernels round differently.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

MOST_ROWS = 2048
"""Of more at once a kernel makes no more of a device."""


@dataclass(frozen=True, slots=True)
class RowBlocks:
    """Kernels get at least `rows` rows at a time or, if `fixed`, blocks of exactly so many. Rows of zeros fill up.

    They get at most `MOST_ROWS`, so that what they compute for a long prompt takes no more memory than that.

    A device records work for the numbers of rows in `repeated`, to which fewer are filled up.
    """

    rows: int = 1
    fixed: bool = False
    repeated: tuple[int, ...] = ()

    @classmethod
    def of(
        cls, block_rows: int, least_rows: int, repeated: Sequence[int] = (), *, batch_invariant: bool
    ) -> "RowBlocks":
        """Blocks of a fixed size for `batch_invariant`; otherwise what costs nothing, `least_rows`."""
        return cls(block_rows if batch_invariant else least_rows, batch_invariant, tuple(repeated))

    def padded(self, count: int) -> int:
        """How many rows are computed for `count`, which is at least 1."""
        if self.fixed:
            return -(-count // self.rows) * self.rows
        return next((rows for rows in self.repeated if rows >= count), max(count, self.rows))

    def most_added(self) -> int:
        """How many rows are at most computed beside those that count."""
        return max(self.padded(count) - count for count in range(1, max((self.rows, *self.repeated)) + 1))

    def cuts(self, begin: int, end: int, most_rows: int = MOST_ROWS) -> list[tuple[int, int]]:
        """Rows [begin, end), which are padded, as those of each call of a kernel: of about one size."""
        count = (end - begin) // self.rows if self.fixed else -(-(end - begin) // most_rows)
        return list(itertools.pairwise(begin + (end - begin) * index // count for index in range(count + 1)))

    def most_at_once(self, count: int) -> int:
        """How many rows a kernel gets at most of `count`, which are padded."""
        return self.rows if self.fixed else min(count, MOST_ROWS)

    def fill(self, rows_TD: torch.Tensor) -> torch.Tensor:
        """The rows, and zeros behind them: [T padded, D]."""
        missing = self.padded(len(rows_TD)) - len(rows_TD)
        return torch.nn.functional.pad(rows_TD, (0, 0, 0, missing)) if missing else rows_TD
