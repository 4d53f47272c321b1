"""The digests of whole files, read from the disk itself: what the page cache holds may be sound all the same."""

import hashlib
import mmap
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import xxhash

from pipeline.checkpoints.shard import Shard
from pipeline.groups.layout import Window
from pipeline.reading.preadv_lanes import PreadvLane
from pipeline.reading.reading_lane import Disk
from pipeline.system.page_cache import advise

PIECE_BYTES = 8 << 20
"""How closely damage is located, and what is read while the piece before is summed up."""
SHA256, GIT, DATA = "sha256", "git sha1", "sha256 of the data"
"""A digest is of the file; as git names it, behind its size; or of all behind the header of a safetensors file."""


@dataclass(frozen=True, slots=True)
class Digests:
    """The hexadecimal digests of one file by algorithm, and the XXH3 of each piece."""

    nbytes: int
    whole: dict[str, str]
    pieces: tuple[str, ...]


class Stopped(Exception):
    """The caller does not wait for the digests any more."""


def digest(
    shard: Shard, wanted: Collection[str], data_start: int, count: Callable[[int], None], stop: threading.Event
) -> Digests:
    """Read a file once, and sum it up in the `wanted` ways; `count` hears of the bytes of each piece.

    Raises OSError or CheckpointError where the file cannot be read or changes meanwhile, Stopped soon after `stop`.
    """
    sums = {
        SHA256: hashlib.sha256(),
        GIT: hashlib.sha1(b"blob %d\0" % shard.size, usedforsecurity=False),
        DATA: hashlib.sha256(),
    }
    pieces = []
    for start, piece in _pieces(shard):
        if stop.is_set():
            raise Stopped
        for algorithm in wanted:
            rest = piece[max(0, data_start - start) :] if algorithm == DATA else piece
            sums[algorithm].update(rest)
        pieces.append(xxhash.xxh3_64_hexdigest(piece))
        count(len(piece))
    return Digests(shard.size, {algorithm: sums[algorithm].hexdigest() for algorithm in wanted}, tuple(pieces))


def _pieces(shard: Shard) -> Iterator[tuple[int, memoryview]]:
    """Each piece with where it begins, while the next is being read; it is overwritten after that."""
    # Where direct reads are refused, the disk is asked all the same.
    advise(shard.buffered, 0, 0, "POSIX_FADV_DONTNEED")
    lane = PreadvLane(Disk({shard.path: shard}, direct=shard.direct is not None))
    views = [memoryview(mmap.mmap(-1, PIECE_BYTES)) for _ in range(2)]
    starts = range(0, shard.size, PIECE_BYTES)
    with ThreadPoolExecutor(1, thread_name_prefix="penstock-verify-read") as thread:

        def begin(index: int) -> "Future[bool]":
            chunk = Window(shard.path, starts[index], PIECE_BYTES, 0)
            return thread.submit(lane.read_chunk, chunk, views[index % 2])

        begun = [begin(0)] if starts else []
        for index, start in enumerate(starts):
            begun.pop().result()
            begun += [begin(index + 1)] if index + 1 < len(starts) else []
            yield start, views[index % 2][: min(PIECE_BYTES, shard.size - start)]
