"""A weight file, opened once: what it was then, and the descriptors that all its readers share."""

import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pipeline.errors import CheckpointError, ConfigError
from pipeline.system.page_cache import NOT_OFFERED, advise, open_direct
from pipeline.system.small_files import open_plain, os_errors_named

OPEN_FILES = Path("/proc/self/fd")
SPARE_DESCRIPTORS = 16
"""For the event loop, the KV blocks on the disk, and files that are read whole and closed again."""


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """Tells whether a file is still the one that was opened."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """From the result of `os.stat` or `os.fstat`."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class Shard:
    """A regular file, whose bytes stay those that were opened: its name may be deleted, moved or given to another file.

    All threads share the descriptors, and read at positions of their own. `direct` reads past the page cache; it is
    None where that was not asked for, and where it is refused, for the reason `refusal`.
    """

    def __init__(self, path: Path, *, direct: bool = True) -> None:
        """Open the file. Raises CheckpointError for what is missing, is no regular file, or may not be read."""
        self.path = path
        self.direct: int | None = None
        self.refusal = ""
        with os_errors_named(path):
            self.buffered = open_plain(path)
        try:
            self.identity = FileIdentity.of(os.fstat(self.buffered))
            advise(self.buffered, 0, 0, "POSIX_FADV_RANDOM")  # neighbours of a row or a chunk are of no use here
            if direct:
                self._open_direct()
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int:
        """Bytes of the file when it was opened."""
        return self.identity.size

    def read(self, start: int, nbytes: int) -> bytes:
        """Bytes of the file, so many from `start` on if it has them. Raises CheckpointError when it cannot be read."""
        found = b""
        with os_errors_named(self.path):
            while len(found) < nbytes and (piece := os.pread(self.buffered, nbytes - len(found), start + len(found))):
                found += piece
        return found

    def expect(self, start: int, nbytes: int) -> None:
        """Have these bytes read into the page cache, without waiting for them."""
        advise(self.buffered, start, nbytes, "POSIX_FADV_WILLNEED")

    def close(self) -> None:
        """Close the descriptors; no read may be in flight. Closing twice is harmless."""
        descriptors, self.buffered, self.direct = (self.buffered, self.direct), -1, None
        for descriptor in descriptors:
            if descriptor is not None and descriptor >= 0:
                os.close(descriptor)

    def _open_direct(self) -> None:
        with os_errors_named(self.path):
            try:
                self.direct = open_direct(self.path)
            except OSError as error:
                if error.errno not in NOT_OFFERED:
                    raise
                self.refusal = str(error.strerror)
                return
        need, have = self.identity, FileIdentity.of(os.fstat(self.direct))
        if have != need:
            fault = "changed while it was opened"
            raise CheckpointError(f"{self.path}: {fault}: need {need}, have {have}; open the model again")


def require_descriptors(what: Path, count: int) -> None:
    """Refuse what would open more files than this process may. Raises ConfigError with need and have."""
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        opened = len(os.listdir(OPEN_FILES)) - 1  # without the one that lists them
    except OSError:
        return  # they cannot be counted here; opening one too many says so itself
    need = opened + count + SPARE_DESCRIPTORS
    if limit != resource.RLIM_INFINITY and need > limit:
        may_raise = hard == resource.RLIM_INFINITY or need <= hard
        raising = f"raise it with `ulimit -n {need}` or resource.setrlimit"
        how = raising if may_raise else f"raise its hard limit, {hard}"
        raise ConfigError(
            f"{what}: need {need} open files ({count} for the weights, {opened} that are open, {SPARE_DESCRIPTORS} to "
            f"spare), have a limit of {limit}; {how}, close others, or write the checkpoint in fewer shards"
        )
