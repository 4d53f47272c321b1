"""Into how many rows the tokens of a pass are put for computing, so that a row's bits do not depend on the others.

Libraries choose the kernel of a matrix product, a norm or a sum by the number of rows, and kernels round differently.
"""

from dataclasses import dataclass

import torch

CPU_ROWS, GPU_ROWS = 32, 256
"""Of a block of fixed size: as many as take a GPU no longer than few, and a CPU not much longer."""


@dataclass(frozen=True, slots=True)
class RowBlocks:
    """Kernels get at least `rows` rows at a time or, if `fixed`, blocks of exactly so many. Rows of zeros fill up."""

    rows: int = 1
    fixed: bool = False

    @classmethod
    def of(cls, dtype: torch.dtype, *, gpu: bool, batch_invariant: bool) -> "RowBlocks":
        """Fixed blocks for `batch_invariant`; otherwise what costs nothing.

        On a CPU oneDNN multiplies a single row with another kernel than two or more, which takes as long.
        """
        if batch_invariant:
            return cls(GPU_ROWS if gpu else CPU_ROWS, fixed=True)
        return cls(1 if gpu or not _one_dnn_multiplies(dtype) else 2)

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


def _one_dnn_multiplies(dtype: torch.dtype) -> bool:
    """Of fp16 only where the CPU can; elsewhere torch has a kernel of its own, for which every row is the only one."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype != torch.float16 or bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
