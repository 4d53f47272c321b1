"""Into how many rows the tokens of a pass are put for computing, so that a row's bits do not depend on the others.

Libraries choose the kernel of a matrix product, a norm or a sum by the number of rows, and kernels round differently.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class RowBlocks:
    """Kernels get at least `rows` rows at a time or, if `fixed`, blocks of exactly so many. Rows of zeros fill up."""

    rows: int = 1
    fixed: bool = False

    @classmethod
    def of(cls, block_rows: int, least_rows: int, *, batch_invariant: bool) -> "RowBlocks":
        """Blocks of a fixed size for `batch_invariant`; otherwise what costs nothing, `least_rows`."""
        return cls(block_rows, fixed=True) if batch_invariant else cls(least_rows)

    def padded(self, count: int) -> int:
        """How many rows are computed for `count`, which is at least 1."""
        return -(-count // self.rows) * self.rows if self.fixed else max(count, self.rows)

    def cuts(self, begin: int, end: int) -> list[tuple[int, int]]:
        """Rows [begin, end), which are padded, as those of each call of a kernel."""
        step = self.rows if self.fixed else end - begin
        return [(first, first + step) for first in range(begin, end, step)]

    def fill(self, rows_TD: torch.Tensor) -> torch.Tensor:
        """The rows, and zeros behind them: [T padded, D]."""
        missing = self.padded(len(rows_TD)) - len(rows_TD)
        return torch.nn.functional.pad(rows_TD, (0, 0, 0, missing)) if missing else rows_TD
