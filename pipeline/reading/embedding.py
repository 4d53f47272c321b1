"""The embedding table, of which only the rows that a pass needs are fetched.

A quantised table may be several tensors, each of which has its part of every row.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from actors.compute_scheduler import ComputeScheduler
from actors.core.errors import ActorFailed, PenstockError
from actors.core.event import Event
from actors.core.line import numbered
from actors.core.message import READY
from actors.core.ports import Copy
from pipeline.devices.memory import copy_bytes
from pipeline.devices.port import Device
from pipeline.errors import CheckpointError, RequestError
from pipeline.formats.matrix import Matrix, StoredMatrix
from pipeline.formats.parts import EMBED_KEY
from pipeline.groups.catalog import tensor_views
from pipeline.groups.layout import HOST_ALIGNMENT_BYTES
from pipeline.reading.checksums import Checksums
from pipeline.reading.kept_table import KeptTable, RowPart
from pipeline.reading.rows import RowReader

logger = logging.getLogger("penstock")


class EmbeddingRows:
    """Room for `most_rows` rows in host memory and on the device, filled anew by every `fetch`.

    With `stays` the whole table comes into host memory beside the first passes, and `fetch` takes rows from there.
    Errors bear the number of the `section`, where there are several.
    """

    def __init__(
        self,
        table: StoredMatrix,
        reader: RowReader,
        device: Device,
        most_rows: int,
        checksums: Checksums | None = None,
        *,
        stays: bool = False,
        section: int | None = None,
    ) -> None:
        self.most_rows = most_rows
        self._section = section
        self._matrix = table
        self._reader = reader
        self._device = device
        self._checksums = checksums
        self.parts: list[RowPart] = []
        end = 0
        for tensor in table.tensors:
            offset = -(-end // HOST_ALIGNMENT_BYTES) * HOST_ALIGNMENT_BYTES
            self.parts.append(RowPart(tensor, tensor.length // table.rows, offset))
            end = offset + most_rows * self.parts[-1].row_bytes
        self._host = device.host_memory(end)
        self._rows = device.device_memory(end)
        self.kept: KeptTable | None = None
        if stays:
            memories = [device.plain_memory(tensor.length) for tensor in table.tensors]
            self.kept = KeptTable(self.parts, reader, memories)

    async def fetch(self, token_ids: Sequence[int], *, upload: bool = True) -> Event:
        """Read the rows of these tokens, each once, or take them from memory; return the event of their upload.

        They go through the H2D lane like everything else; without `upload` a device records their `copy`.
        Raises OSError when the disk failed twice, CheckpointError when a row differs from its first read, and still
        does when it is read again.
        """
        if self.kept is None or not self.kept.take(token_ids, self._host):
            await self._read_once(token_ids)
        return self._device.upload(self._host, self._rows, self._copies(len(token_ids)), ()) if upload else READY

    @property
    def is_seen(self) -> bool:
        """Whether the device sees the whole table, so that it can `take` rows of it."""
        return self.kept is not None and bool(self.kept.seen)

    def take(self, token_ids_T: torch.Tensor) -> None:
        """Fetch the rows of these tokens, on the lane that computes."""
        for part, seen_VB in zip(self.parts, self.kept.seen if self.kept else (), strict=True):
            rows_TB = self._rows.tensor[part.offset :][: len(token_ids_T) * part.row_bytes].view(len(token_ids_T), -1)
            torch.index_select(seen_VB, 0, token_ids_T, out=rows_TB)

    def copy(self, rows: int) -> None:
        """Copy so many rows to the device, on the lane that does this."""
        copy_bytes(self._host, self._rows, self._copies(rows))

    def may_load(self) -> None:
        """Let `load` begin: a pass is through, in which the weight groups were read."""
        if self.kept is not None:
            self.kept.may_load()

    async def load(self, *, seen: bool) -> None:
        """Read the whole table, where it stays, and let the device see it."""
        if self.kept is not None:
            await self.kept.load(self._device.seen if seen else None)

    def let_go(self) -> None:
        """Hold no view of the table any more."""
        if self.kept is not None:
            self.kept.seen = ()

    async def unreadable(self, token_ids: Sequence[int]) -> dict[int, PenstockError]:
        """Those of these tokens whose rows cannot be read, or differ from their first read, each with its error.

        None of them, where no row can be read at all.
        """
        errors: dict[int, PenstockError] = {}
        asked = set(token_ids)
        another = next(token_id for token_id in range(self._matrix.rows + 1) if token_id not in asked)
        rows = [*asked, another] if another < self._matrix.rows else [*asked]
        for token_id in rows:
            try:
                await self._read([token_id])
                await self._verify([token_id])
            except Exception as error:
                errors[token_id] = self._row_failed(token_id, error)
        if len(errors) == len(rows):
            return {}
        return {token_id: error for token_id, error in errors.items() if token_id in asked}

    def rows(self, first: int, last: int) -> Matrix:
        """Rows [first, last) of those that were fetched, [T, D]. Only after the event of `fetch`."""
        fetched = self._matrix.slice(0, last - first)
        offsets = {part.tensor.short: part.offset + first * part.row_bytes for part in self.parts}
        return fetched.over(tensor_views(self._rows.tensor, offsets, fetched.tensors))

    def failed(self, error: Exception) -> ActorFailed:
        """An error of fetching or computing the embedding, in the name of the actor that runs the program.

        The embedding does not travel the line, so no actor has it in hand.
        """
        if isinstance(error, ActorFailed):
            return error
        return ActorFailed(numbered(ComputeScheduler.name, self._section), *EMBED_KEY, error)

    def _copies(self, rows: int) -> Sequence[Copy]:
        """One copy for each tensor: to start one for each row would take longer than to compute the rows."""
        return tuple(Copy(part.offset, part.offset, rows * part.row_bytes) for part in self.parts)

    async def _read_once(self, token_ids: Sequence[int]) -> None:
        places = {token_id: index for index, token_id in enumerate(dict.fromkeys(token_ids))}
        try:
            await self._read(tuple(places))
        except OSError as error:
            logger.warning("reading %d rows of the embedding failed, trying once more: %s", len(places), error)
            await self._read(tuple(places))
        await self._verify(tuple(places))
        self._spread([places[token_id] for token_id in token_ids])

    def _row_failed(self, token_id: int, error: Exception) -> PenstockError:
        """The error of the requests that need a row; damage is reported as that of a weight group is."""
        if isinstance(error, CheckpointError):
            return self.failed(error)
        if isinstance(error, OSError) and error.filename is not None:  # callers may not know the folder
            error = OSError(error.errno, error.strerror, Path(error.filename).name)
        return RequestError(f"the embedding row of token {token_id} cannot be read: {type(error).__name__}: {error}")

    def _spread(self, places: Sequence[int]) -> None:
        """Copy rows in host memory from their places to those of the tokens, which never lie before them.

        It begins with the last token, so that no row is overwritten that another token needs.
        """
        for part in self.parts:
            rows, size = self._host.view[part.offset :], part.row_bytes
            for index in range(len(places) - 1, -1, -1):
                if (place := places[index]) != index:
                    rows[index * size : (index + 1) * size] = rows[place * size : (place + 1) * size]

    async def _verify(self, token_ids: Sequence[int]) -> None:
        """Compare rows with their first read, and read once more what differs, as is done with weight groups."""
        if (fault := self._mismatch(token_ids)) is None:
            return
        logger.warning("the embedding differs from its first read, reading once more: %s", fault)
        for part in self.parts:
            await self._reader.forget(part.tensor.file, part.starts(token_ids), part.row_bytes)
        await self._read(token_ids)
        if (fault := self._mismatch(token_ids)) is not None:
            raise fault

    def _mismatch(self, token_ids: Sequence[int]) -> CheckpointError | None:
        """Return the fault of the first of the rows in host memory that differs from its first read."""
        if self._checksums is None:
            return None
        compare, view = self._checksums.compare_rows, self._host.view
        faults = (compare(part.tensor, token_ids, view[part.offset :]) for part in self.parts)
        return next((fault for fault in faults if fault is not None), None)

    async def _read(self, token_ids: Sequence[int]) -> None:
        for part in self.parts:
            view = self._host.view[part.offset :]
            await self._reader.read(part.tensor.file, part.starts(token_ids), part.row_bytes, view)
