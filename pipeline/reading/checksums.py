"""Weights are compared with their first read whenever they are read again: 8 bytes are kept for each piece.

XXH3 tells any change but one in 2^64, at the rate of the memory. It is no defence against an attacker that makes two
contents look alike; `penstock verify` is, by SHA-256.
"""

import asyncio
import shlex
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import xxhash

from actors.core.message import GroupKey
from pipeline.errors import CheckpointError
from pipeline.formats.tensors import TensorRange
from pipeline.groups.groups import WeightGroup
from pipeline.groups.layout import Window
from pipeline.system.threads import Threads, outlast, usable_cores

INLINE_BYTES = 1 << 20
"""A lane sums so much up itself, in 40 us: to wake a thread costs nearly as much."""
SUM_BYTES_PER_SECOND = 7e9
"""Of one core, of bytes that have just been read: the least that was measured. 7.2 on an Intel Xeon beside a GPU, 21 to
36 on an AMD EPYC of the fourth generation."""
FAST_DISK_BYTES_PER_SECOND = 7e9
"""A disk that was not measured is taken for one of this rate."""
FEW_BYTES = 256 << 20
MOST_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class Checking:
    """Whether weights are compared with their first read, and why."""

    on: bool
    why: str

    def __str__(self) -> str:
        return f"{'on' if self.on else 'off'}: {self.why}"


def choose_checking(said: bool | None, shares_cores: bool, moving_bytes: int, rate: float | None) -> Checking:
    """Return what is `said`; else on, unless it could take more than MOST_SHARE of passes that the CPU computes.

    Summing up takes most where reading at `rate` bytes per second and computing take equally long: no core is idle.
    """
    if said is not None:
        return Checking(said, "as the settings say")
    if not shares_cores:
        return Checking(True, "it costs little beside copying to the device")
    if moving_bytes < FEW_BYTES:
        return Checking(True, "few bytes move in a pass")
    cores = usable_cores()
    share = (rate or FAST_DISK_BYTES_PER_SECOND) / (cores * SUM_BYTES_PER_SECOND)
    cost = f"up to {share:.1%} of a pass, with {cores} cores for computing and for what the disk delivers"
    if share > MOST_SHARE:
        return Checking(False, f"it takes {cost}; set checksums=True to be told of damage on the disk all the same")
    return Checking(True, f"it takes {cost}")


class TensorPiece(NamedTuple):
    """Bytes of one tensor that lie in one chunk: in their file, and in the host slot."""

    tensor: TensorRange
    start: int
    length: int
    slot_offset: int


class TensorPieces:
    """The pieces of a group that are summed up, and in which chunk each lies."""

    def __init__(self, group: WeightGroup, chunks: Sequence[Window]) -> None:
        self.nbytes = group.needed_bytes
        self.pieces: list[TensorPiece] = []
        self.of_chunk: dict[Window, range] = {}
        for chunk in chunks:
            first = len(self.pieces)
            self.pieces += _within(group, chunk)
            self.of_chunk[chunk] = range(first, len(self.pieces))


class Sums:
    """The digests of one read of a group, on threads beside its lanes. Nothing looks into `view` after `ended`."""

    def __init__(self, key: GroupKey, pieces: TensorPieces, view: memoryview, threads: Threads) -> None:
        self.key = key
        self.pieces = pieces.pieces
        self.nbytes = pieces.nbytes
        self.digests = array("Q", bytes(8 * len(self.pieces)))
        self._of_chunk = pieces.of_chunk
        self._view = view
        self._threads = threads
        self._running: list[Future[None]] = []

    def add(self, chunk: Window) -> None:
        """Sum up a chunk that is whole; a small one at once, on the lane's own thread."""
        places = self._of_chunk[chunk]
        if sum(self.pieces[place].length for place in places) <= INLINE_BYTES:
            self._sum_up(places)
        else:
            self._running.append(self._threads.submit(self._sum_up, places))

    async def ended(self) -> None:
        """Wait for the threads, also when cancelled."""
        await outlast([asyncio.wrap_future(one) for one in self._running])

    def _sum_up(self, places: range) -> None:
        for place in places:
            piece = self.pieces[place]
            self.digests[place] = _digest(self._view[piece.slot_offset :][: piece.length])


class Checksums:
    """The digests of all weight groups, and of the rows of tables that have been fetched.

    A group that stays in memory is read once, so nothing is ever compared with it. `groups`, `rows` and `nbytes` count
    what was summed up, `mismatches` the groups and calls for rows that differed, those that another read has mended
    among them. `folder` is that of the checkpoint.
    """

    def __init__(self, groups: Sequence[WeightGroup], threads: int, folder: Path) -> None:
        self.groups = self.rows = self.nbytes = self.mismatches = 0
        self._groups = {group.key: group for group in groups}
        self._pieces: dict[GroupKey, TensorPieces] = {}
        self._digests: dict[GroupKey, array[int]] = {}
        self._folder = folder
        self._row_digests: dict[TensorRange, array[int]] = {}
        self._threads = Threads(threads, "penstock-checksums")

    def begin(self, key: GroupKey, chunks: Sequence[Window], view: memoryview) -> Sums:
        """Begin the sums of one read of a group, whose chunks, the same in every read, land in its host slot."""
        if key not in self._pieces:
            self._pieces[key] = TensorPieces(self._groups[key], chunks)
        return Sums(key, self._pieces[key], view, self._threads)

    def compare(self, sums: Sums) -> CheckpointError | None:
        """The error of a group that has been summed up and differs from its first read; None if it does not."""
        self.groups += 1
        self.nbytes += sums.nbytes
        known, found = self._digests.setdefault(sums.key, sums.digests), sums.digests
        if known == found:
            return None
        self.mismatches += 1
        changed = [place for place in range(len(found)) if known[place] != found[place]]
        first = changed[0]
        return self._error(sums.pieces[first], known[first], found[first], len(changed) - 1)

    def compare_rows(self, table: TensorRange, indices: Sequence[int], rows: memoryview) -> CheckpointError | None:
        """Sum up rows of a table, one behind the other; what is wrong with the first that differs."""
        row_bytes = table.length // table.shape[0]
        if table not in self._row_digests:
            self._row_digests[table] = array("Q", bytes(8 * table.shape[0]))
        digests = self._row_digests[table]
        self.rows += len(indices)
        self.nbytes += len(indices) * row_bytes
        for place, index in enumerate(indices):
            digest = _digest(rows[place * row_bytes :][:row_bytes]) or 1  # 0 is a row that was never fetched
            known = digests[index] = digests[index] or digest
            if known != digest:
                self.mismatches += 1
                row = TensorPiece(table, table.start + index * row_bytes, row_bytes, 0)
                return self._error(row, known, digest, 0)
        return None

    async def aclose(self) -> None:
        """End the threads. Closing twice is harmless."""
        await asyncio.to_thread(self._threads.shutdown)

    def _error(self, piece: TensorPiece, known: int, found: int, others: int) -> CheckpointError:
        file = piece.tensor.file
        more = f" (and {others} more pieces of the group)" if others else ""
        return CheckpointError(
            f"{file}: weights changed on disk: bytes {piece.start} to {piece.start + piece.length}, of tensor "
            f"{piece.tensor.name!r}{more}: need checksum {known:016x}, as they had when they were first read, have "
            f"{found:016x}; `penstock verify {shlex.quote(str(self._folder))}` tells what is damaged; mend it and open "
            "the model anew"
        )


def _within(group: WeightGroup, chunk: Window) -> Iterator[TensorPiece]:
    """The bytes of the group's tensors in a chunk, without the padding around them."""
    for tensor in group.tensors:
        start = max(tensor.start, chunk.start)
        end = min(tensor.start + tensor.length, chunk.start + chunk.length)
        if tensor.file == chunk.file and start < end:
            yield TensorPiece(tensor, start, end - start, chunk.slot_offset + start - chunk.start)


def _digest(run: memoryview) -> int:
    """Not the one-call function: before xxhash 4 that holds the interpreter's lock all the while, `update` never."""
    digest = xxhash.xxh3_64()
    digest.update(run)
    return digest.intdigest()
