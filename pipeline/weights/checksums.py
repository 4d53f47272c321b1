"""What the weights were when they were first read, as 8 bytes for each piece: compared whenever they are read again.

XXH3 tells any change but one in 2^64, at the rate of the memory. It is no defence against somebody who wants two
contents to look alike; `penstock verify` is, by SHA-256.
"""

import asyncio
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import xxhash

from pipeline.errors import CheckpointError
from pipeline.threads import Threads, outlast
from pipeline.weights.groups import TensorRange, WeightGroup
from pipeline.weights.layout import HostLayout

if TYPE_CHECKING:
    from pipeline.devices.memory import HostMemory

PIECE_BYTES = 4 << 20
"""How closely a change is located, and what a thread sums up at a time."""
INLINE_BYTES = 1 << 20
"""What is summed up on the event loop, in 40 us: to wake a thread and to be woken by it costs more than that."""


SUM_BYTES_PER_SECOND = 25e9
"""Of one core beside others that compute: 36 GB/s alone, and 21 to 30 there, measured."""
FAST_DISK_BYTES_PER_SECOND = 7e9
"""What a disk that nobody has measured is taken for."""
FEW_BYTES = 256 << 20
MOST_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class Checking:
    """Whether weights are compared with their first read, and why."""

    on: bool
    why: str

    def __str__(self) -> str:
        return f"{'on' if self.on else 'off'}: {self.why}"


def choose_checking(
    said: bool | None, *, changed: bool, unified: bool, moving_bytes: int, rate: float | None
) -> Checking:
    """What is `said`; else on, unless it could take more than MOST_SHARE of passes that the CPU computes.

    Off where bytes may have `changed` since they were read: what differs is read again, which would undo the change.
    Summing up takes most where reading at `rate` bytes per second and computing take equally long: no core is idle.
    """
    if said is not None:
        return Checking(said, "as the settings say")
    if changed:
        return Checking(False, "a stage of yours behind disk_reader may change what was read")
    if not unified:
        return Checking(True, "the CPU does not compute")
    if moving_bytes < FEW_BYTES:
        return Checking(True, "few bytes move in a pass")
    cores = usable_cores()
    share = (rate or FAST_DISK_BYTES_PER_SECOND) / (cores * SUM_BYTES_PER_SECOND)
    cost = f"up to {share:.1%} of a pass, with {cores} cores for computing and for what the disk delivers"
    if share > MOST_SHARE:
        return Checking(False, f"it takes {cost}; set checksums=True to be told of damage on the disk all the same")
    return Checking(True, f"it takes {cost}")


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Piece(NamedTuple):
    """Bytes of one tensor, in its file and in a host slot."""

    tensor: TensorRange
    start: int
    length: int
    slot_offset: int


class Checksums:
    """The digests of all weight groups, and of the rows of the embedding table that have been fetched.

    A group that stays in memory is read once, so nothing is ever compared with it. `groups`, `rows` and `nbytes` count
    what was summed up, `mismatches` the groups and calls for rows that differed, those that another read has mended
    among them.
    """

    def __init__(
        self,
        groups: Sequence[WeightGroup],
        layouts: Mapping[tuple[int, str], HostLayout],
        embed: TensorRange,
        threads: int,
    ) -> None:
        self.groups = self.rows = self.nbytes = self.mismatches = 0
        self._groups = {(group.layer, group.name): group for group in groups}
        self._pieces = {key: tuple(_cut(group, layouts[key])) for key, group in self._groups.items()}
        self._digests: dict[tuple[int, str], array[int]] = {}
        self._embed = embed
        self._row_digests = array("Q", bytes(8 * embed.shape[0]))
        self._thread_count = threads
        self._threads = Threads(threads, "penstock-checksums")

    async def compare(self, layer: int, group: str, buffer: "HostMemory") -> CheckpointError | None:
        """Sum up a group in its host slot; what is wrong with it, if it differs from its first read.

        Returns or passes a cancellation on only when no thread looks into `buffer` any more.
        """
        key = (layer, group)
        pieces = self._pieces[key]
        found = array("Q", bytes(8 * len(pieces)))
        nbytes = self._groups[key].needed_bytes
        if nbytes <= INLINE_BYTES:
            _sum_up(pieces, buffer.view, found, 0, 1)
        else:
            loop, step, view = asyncio.get_running_loop(), min(self._thread_count, len(pieces)), buffer.view
            work = [
                loop.run_in_executor(self._threads, _sum_up, pieces, view, found, first, step) for first in range(step)
            ]
            await outlast(work)
        self.groups += 1
        self.nbytes += nbytes
        known = self._digests.setdefault(key, found)
        if known == found:
            return None
        self.mismatches += 1
        changed = [index for index in range(len(pieces)) if known[index] != found[index]]
        first = changed[0]
        return _error(pieces[first], known[first], found[first], len(changed) - 1)

    def compare_rows(self, indices: Sequence[int], rows: memoryview) -> CheckpointError | None:
        """Sum up rows of the embedding table, one behind the other; what is wrong with the first that differs."""
        row_bytes = self._embed.length // self._embed.shape[0]
        self.rows += len(indices)
        self.nbytes += len(indices) * row_bytes
        for place, index in enumerate(indices):
            digest = _digest(rows[place * row_bytes :][:row_bytes]) or 1  # 0 is a row that was never fetched
            known = self._row_digests[index] or digest
            self._row_digests[index] = known
            if known != digest:
                self.mismatches += 1
                row = Piece(self._embed, self._embed.start + index * row_bytes, row_bytes, 0)
                return _error(row, known, digest, 0)
        return None

    async def aclose(self) -> None:
        """End the threads. Closing twice is harmless."""
        await asyncio.to_thread(self._threads.shutdown)


def _cut(group: WeightGroup, layout: HostLayout) -> Iterator[Piece]:
    """The bytes of the group's tensors, without the padding around them."""
    for tensor in group.tensors:
        offset = layout.offsets[tensor.short]
        for done in range(0, tensor.length, PIECE_BYTES):
            yield Piece(tensor, tensor.start + done, min(PIECE_BYTES, tensor.length - done), offset + done)


def _sum_up(pieces: Sequence[Piece], view: memoryview, found: "array[int]", first: int, step: int) -> None:
    for index in range(first, len(pieces), step):
        piece = pieces[index]
        found[index] = _digest(view[piece.slot_offset :][: piece.length])


def _digest(run: memoryview) -> int:
    """Not the one-call function: before xxhash 4 that holds the interpreter's lock all the while, `update` never."""
    digest = xxhash.xxh3_64()
    digest.update(run)
    return digest.intdigest()


def _error(piece: Piece, known: int, found: int, others: int) -> CheckpointError:
    file = piece.tensor.file
    more = f" (and {others} more pieces of the group)" if others else ""
    return CheckpointError(
        f"{file}: weights changed on disk: bytes {piece.start} to {piece.start + piece.length}, of tensor "
        f"{piece.tensor.name!r}{more}: need checksum {known:016x}, as they had when they were first read, have "
        f"{found:016x}; `penstock verify {file.parent}` tells what is damaged; mend it and open the model anew"
    )
