"""The embedding table in host memory, where the memory plan has room for it: a pass takes its rows from there.

To fetch 64 single rows takes 1.5 ms, as long as a GPU needs for four layers; to take them from memory, 0.1 ms.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from actors.core.errors import said
from pipeline.devices.memory import HostMemory
from pipeline.formats.tensors import TensorRange
from pipeline.reading.rows import RowReader
from pipeline.system.threads import outlast

CHUNK_BYTES = 4 << 20
"""What is read at a time: rows that a pass fetches meanwhile wait for so much at most."""
FEW_ROWS = 512
"""To wake the threads of torch for 64 rows takes up to 1 ms, ten times as long as to copy them on this one."""
logger = logging.getLogger("penstock")


@dataclass(frozen=True, slots=True)
class RowPart:
    """One tensor of the table, how many bytes it has of each row, and where those begin in the room for rows."""

    tensor: TensorRange
    row_bytes: int
    offset: int

    def starts(self, token_ids: Sequence[int]) -> list[int]:
        """Where the bytes of these rows begin in the file."""
        return [self.tensor.start + token_id * self.row_bytes for token_id in token_ids]


class KeptTable:
    """The rows of a table that have been read, `rows` of them from the first on, each part in one of `memories`."""

    def __init__(self, parts: Sequence[RowPart], reader: RowReader, memories: Sequence[HostMemory]) -> None:
        self.rows = 0
        self.seen: Sequence[torch.Tensor] = ()
        self._parts = tuple(zip(parts, memories, strict=True))
        self._reader = reader
        self._all_rows = parts[0].tensor.length // parts[0].row_bytes
        self._may_load = asyncio.Event()

    def may_load(self) -> None:
        """Let `load` begin: a pass is through, in which the weight groups were read."""
        self._may_load.set()

    async def load(self, see: Callable[[HostMemory], torch.Tensor] | None = None) -> None:
        """Read the rows, from the first on. Where that fails, the others are fetched one by one, as before.

        When all are read `see` maps each memory for the device; its views are `seen`, one for each part, [V, bytes of a
        row].
        """
        await self._may_load.wait()
        rows_at_once = max(1, CHUNK_BYTES // sum(part.row_bytes for part, _ in self._parts))
        try:
            while self.rows < self._all_rows:
                rows = min(rows_at_once, self._all_rows - self.rows)
                for part, memory in self._parts:
                    await self._read(part, memory, rows)
                self.rows += rows
        except Exception as error:  # no other task would tell
            logger.warning("the embedding is not kept in memory from row %d on: %s", self.rows, said(error))
            return
        if see is not None:
            loop = asyncio.get_running_loop()
            seeing = [loop.run_in_executor(None, see, memory) for _, memory in self._parts]
            try:
                await outlast(seeing)
            except Exception as error:
                logger.warning("every pass waits for the tokens of the one before: %s", said(error))
            else:
                self.seen = [memory_B.result().view(self._all_rows, -1) for memory_B in seeing]

    def take(self, token_ids: Sequence[int], into: HostMemory) -> bool:
        """Copy these rows into the room for rows, one behind the other; False where one of them is not here yet."""
        if max(token_ids) >= self.rows:
            return False
        for part, memory in self._parts:
            kept_VB = memory.tensor[: self.rows * part.row_bytes].view(self.rows, -1)
            rows_TB = into.tensor[part.offset :][: len(token_ids) * part.row_bytes].view(len(token_ids), -1)
            if len(token_ids) <= FEW_ROWS:
                np.take(kept_VB.numpy(), token_ids, axis=0, out=rows_TB.numpy(), mode="clip")  # "raise" buffers
            else:
                torch.index_select(kept_VB, 0, torch.tensor(token_ids), out=rows_TB)
        return True

    async def _read(self, part: RowPart, memory: HostMemory, rows: int) -> None:
        """The next rows."""
        begin, nbytes = self.rows * part.row_bytes, rows * part.row_bytes
        file, starts = part.tensor.file, part.starts([self.rows])
        await self._reader.read(file, starts, nbytes, memory.view[begin : begin + nbytes], once=True)
