"""Compares all files of a checkpoint folder with what is known of them, several at a time."""

import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoints.checkpoint import weight_files
from pipeline.checkpoints.header import read_header
from pipeline.checkpoints.shard import Shard
from pipeline.errors import CheckpointError
from pipeline.system.small_files import os_errors_named, require_folder
from pipeline.tools.verify.digests import PIECE_BYTES, SHA256, Digests, Stopped, digest
from pipeline.tools.verify.known import SumsFile, known_digests

MOST_WORKERS = 8
"""Files at a time, each with a thread that reads and one that sums up."""
SAY_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result for one file: its faults, the sources of its digests, and the digests unless it could not be read.

    One that cannot be `opened` (it is missing, is no file, or may not be read) says nothing about the disk.
    """

    name: str
    nbytes: int
    faults: tuple[str, ...]
    sources: tuple[str, ...]
    digests: Digests | None
    opened: bool = True

    @property
    def word(self) -> str:
        """The result in one word."""
        if not self.opened:
            return "unread"
        return "damaged" if self.faults else "good" if self.sources else "unknown"


def verify(
    folder: Path, sums: SumsFile, sums_file: Path, say: Callable[[int, int], None], *, all_files: bool
) -> list[Verdict]:
    """Compare the files of a folder, in order of their names; unless `all_files`, those of which something is known.

    `say` hears twice a second how many bytes of how many are done. Raises CheckpointError for no folder with weights.
    """
    require_folder(folder, "a folder with the files of a checkpoint")
    with os_errors_named(folder):
        names = {path.name for path in folder.iterdir() if _counts(path, sums_file)}
    with contextlib.suppress(CheckpointError):  # what is wrong with an index is told where its digest is known
        names |= {name for name in weight_files(folder)[0] if "/" in name}
    names |= sums.whole.keys()
    if not any(name.endswith(".safetensors") for name in names):
        raise CheckpointError(f"{folder}: has no safetensors files; need a folder with the files of a checkpoint")
    sizes = {name: (folder / name).stat().st_size if (folder / name).is_file() else 0 for name in names}
    done, stop, lock = [0], threading.Event(), threading.Lock()

    def count(nbytes: int) -> None:
        with lock:
            done[0] += nbytes

    workers = max(1, min(len(names), os.cpu_count() or 1, MOST_WORKERS))
    with ThreadPoolExecutor(workers, thread_name_prefix="penstock-verify") as threads:
        by_size = sorted(names, key=sizes.__getitem__, reverse=True)
        looking = {one: threads.submit(_look, folder, one, sums, sums_file, count, stop, all_files) for one in by_size}
        try:
            say(0, sum(sizes.values()))
            while wait(looking.values(), timeout=SAY_SECONDS).not_done:
                say(done[0], sum(sizes.values()))
        finally:
            stop.set()
    return [looking[name].result() for name in sorted(looking)]


def _counts(path: Path, sums_file: Path) -> bool:
    """Leave folders and a stray FIFO or socket out, but no file named as weights, and no link to a missing file."""
    stray = path.is_dir() or (path.exists() and not path.is_file() and path.suffix != ".safetensors")
    return not stray and not path.name.startswith(".") and path.absolute() != sums_file.absolute()


def _look(
    folder: Path,
    name: str,
    sums: SumsFile,
    sums_file: Path,
    count: Callable[[int], None],
    stop: threading.Event,
    all_files: bool,
) -> Verdict:
    path = folder / name
    try:
        shard = Shard(path)
    except CheckpointError as error:
        return Verdict(name, 0, (str(error),), (), None, opened=False)
    try:
        known, data_start = known_digests(folder, name, shard, sums, sums_file.name)
        if not known and not all_files:
            return Verdict(name, shard.size, (), (), None)
        found = digest(shard, {SHA256, *(one.algorithm for one in known)}, data_start, count, stop)
        place = _place(shard, sums.pieces.get(name, ()), found.pieces)
        faults = tuple(
            f"{path}: need {one.algorithm} {one.digest}, says {one.source}, have {found.whole[one.algorithm]}{place}"
            for one in known
            if found.whole[one.algorithm] != one.digest
        )
        sources = tuple(dict.fromkeys(one.source for one in known))
        return Verdict(name, shard.size, faults, sources, found)
    except Stopped:
        return Verdict(name, shard.size, (), (), None)
    except (CheckpointError, OSError) as error:
        return Verdict(name, shard.size, (str(error),), (), None)
    finally:
        shard.close()


def _place(shard: Shard, need: tuple[str, ...], have: tuple[str, ...]) -> str:
    """Say which bytes, and of which tensors, differ, where the pieces are known."""
    changed = [index for index, pair in enumerate(zip(need, have, strict=False)) if pair[0] != pair[1]]
    if not changed:
        return ""
    start, end = changed[0] * PIECE_BYTES, min((changed[0] + 1) * PIECE_BYTES, shard.size)
    more = f" and {len(changed) - 1} more pieces of {PIECE_BYTES}" if len(changed) > 1 else ""
    tensors = ""
    if shard.path.suffix == ".safetensors":
        held = [name for name, one in read_header(shard).items() if one.start < end and start < one.start + one.length]
        tensors = f", of {', '.join(held[:3])}{' ...' if len(held) > 3 else ''}"
    return f"; bytes {start} to {end}{more} differ{tensors}"
