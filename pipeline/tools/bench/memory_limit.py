"""One memory limit for whichever program is measured, its page cache included.

A limit on address space or data (RLIMIT_AS, RLIMIT_DATA) does not count the page cache, so a program that maps files
would have all of the machine. `limit_holders` has the ways that do.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError, PenstockError
from pipeline.system.host_memory import available_host_bytes
from pipeline.system.sizes import human_bytes, parse_bytes
from pipeline.tools.bench.cached_files import CachedFiles
from pipeline.tools.bench.limit_holders import HOLDERS, LimitHolder

LOOK_SECONDS = 0.01


class ProgramFailed(PenstockError):
    """A program that was to be measured ended with an error, which it has told on stderr, or was over its limit."""


class OverLimit(ProgramFailed):
    """A program's own memory was more than the limit, and it was ended for that."""


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """The bytes that a program and the cached pages of its files may take; `way` names one of the `HOLDERS`."""

    nbytes: int
    way: str

    def __post_init__(self) -> None:
        if self.way not in HOLDERS:
            raise ConfigError(f"--limit-by: need one of {', '.join(HOLDERS)}, have {self.way!r}")
        if (lacking := HOLDERS[self.way].lacking()) is not None:
            raise ConfigError(f"--limit-by {self.way}: need {lacking}; use another of {', '.join(HOLDERS)}")


def memory_limit(size: int | str | None, way: str | None) -> MemoryLimit | None:
    """Return the limit that --memory-limit and --limit-by set, held in the first way of the kernel unless one is named.

    Raises ConfigError for one that cannot be held here.
    """
    if size is None:
        if way is not None:
            raise ConfigError("--limit-by: need --memory-limit, have none")
        return None
    nbytes = parse_bytes("--memory-limit", size, available_host_bytes())
    ways = [name for name, holder in HOLDERS.items() if holder.kernel_holds and holder.lacking() is None]
    if way is None and not ways:
        raise ConfigError(
            "--memory-limit: no control group can be made here; add --limit-by watchdog, or leave the limit out "
            "and start all of it in a container that has one"
        )
    return MemoryLimit(nbytes, way if way is not None else ways[0])


async def run_limited(command: Sequence[str], limit: MemoryLimit | None, folders: Sequence[Path]) -> tuple[str, int]:
    """Run a program that reads the files in `folders`, of which nothing is cached when it starts.

    Returns what it printed, and the most bytes that its holder counted. Raises ProgramFailed.
    """
    held, nbytes = (LimitHolder, 0) if limit is None else (HOLDERS[limit.way], limit.nbytes)
    with CachedFiles(folders) as files, held(nbytes, files) as holder:
        files.drop_all()
        process = await asyncio.create_subprocess_exec(*holder.command(command), stdout=asyncio.subprocess.PIPE)
        reading = asyncio.create_task(process.communicate())
        try:
            while not reading.done() and not holder.look(process.pid):
                await asyncio.wait([reading], timeout=LOOK_SECONDS)
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            printed, _ = await reading
    name = " ".join(command[1:3])
    if holder.over_bytes:
        need, have = human_bytes(holder.over_bytes), human_bytes(holder.nbytes)
        raise OverLimit(f"{name}: need at least {need}, have a limit of {have}; raise --memory-limit")
    if process.returncode:
        raise ProgramFailed(f"{name}: ended with status {process.returncode}; see above for why")
    return printed.decode(), holder.peak_bytes
