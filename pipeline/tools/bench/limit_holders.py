"""The ways to hold a program to a memory limit.

* "systemd": a control group of its own, made by `systemd-run --scope`; the kernel holds the limit.
* "cgroup", for machines without systemd whose control groups are of version 1: the same, made by hand below our own.
* "watchdog", where there is neither: look every few milliseconds at what the process holds and at what the page
  cache holds of its files, drop cached pages, mapped ones too, while that is too much, and kill the process when its
  own memory alone is. Pages go in no order, which is kinder to a cyclic scan than the kernel, whose oldest come next.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from pipeline.system import proc
from pipeline.tools.bench.cached_files import CachedFiles

SYSTEMD_RUNS = Path("/run/systemd/system")
"""A folder that is there where systemd manages the machine."""
LEAVING_SECONDS = 2.0
"""A group may be removed once the kernel has seen its last process off."""


class LimitHolder:
    """Starts a program under a limit, and looks after it; this class does so without one, and counts its own memory.

    `peak_bytes` are the most that was counted; `over_bytes` what the program had taken when it was ended for taking too
    much, else 0. Both are final behind the `with`.
    """

    kernel_holds = False

    def __init__(self, nbytes: int, files: CachedFiles) -> None:
        self.nbytes = nbytes
        self.files = files
        self.over_bytes = 0
        self.peak_bytes = 0

    @classmethod
    def lacking(cls) -> str | None:
        """Return what this way needs and this machine lacks, or None."""
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def command(self, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` under the limit."""
        return list(command)

    def look(self, pid: int) -> bool:
        """Look at the running program; true when it must end."""
        self.peak_bytes = max(self.peak_bytes, _own_bytes(pid))
        return False


class SystemdScope(LimitHolder):
    """A scope of systemd's; what is counted is the program's own memory."""

    kernel_holds = True

    @classmethod
    def lacking(cls) -> str | None:
        """As `LimitHolder.lacking`."""
        return None if shutil.which("systemd-run") and SYSTEMD_RUNS.is_dir() else "systemd, which does not run here"

    def command(self, command: Sequence[str]) -> list[str]:
        """As `LimitHolder.command`."""
        user = [] if os.geteuid() == 0 else ["--user"]
        limits = ["-p", f"MemoryMax={self.nbytes}", "-p", "MemorySwapMax=0"]
        return ["systemd-run", *user, "--scope", "--quiet", *limits, "--", *command]


class ControlGroup(LimitHolder):
    """A control group of version 1 below our own; what is counted is all that it was charged for, cached pages too."""

    kernel_holds = True

    @classmethod
    def lacking(cls) -> str | None:
        """As `LimitHolder.lacking`."""
        own = _own_group()
        able = own is not None and os.access(own, os.W_OK)
        return None if able else "memory control groups of version 1, and the right to make one"

    def __enter__(self) -> Self:
        self._group = (_own_group() or proc.CONTROL_GROUPS) / f"penstock-{os.getpid()}-{id(self):x}"
        self._group.mkdir()
        (self._group / "memory.limit_in_bytes").write_text(str(self.nbytes))
        with contextlib.suppress(OSError):  # where the kernel does not count swap
            (self._group / "memory.memsw.limit_in_bytes").write_text(str(self.nbytes))
        return self

    def __exit__(self, *_: object) -> None:
        self.look(0)
        deadline = time.monotonic() + LEAVING_SECONDS
        while True:
            try:
                return self._group.rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def command(self, command: Sequence[str]) -> list[str]:
        """As `LimitHolder.command`: a shell enters the group, and becomes the program."""
        return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self._group / "cgroup.procs"), *command]

    def look(self, pid: int) -> bool:
        """As `LimitHolder.look`."""
        self.peak_bytes = int((self._group / "memory.max_usage_in_bytes").read_text())
        counters = dict(line.split() for line in (self._group / "memory.oom_control").read_text().splitlines())
        self.over_bytes = self.nbytes if int(counters.get("oom_kill", 0)) else 0
        return self.over_bytes > 0


class Watchdog(LimitHolder):
    """Counts the program's own memory and the cached pages of the files."""

    def look(self, pid: int) -> bool:
        """As `LimitHolder.look`; drops what is too much."""
        own, cached = _own_bytes(pid), self.files.look()
        self.peak_bytes = max(self.peak_bytes, own + cached)
        if own + cached > self.nbytes:
            self.files.drop(own + cached - self.nbytes, pid)
        self.over_bytes = own if own > self.nbytes else 0
        return self.over_bytes > 0


HOLDERS: Mapping[str, type[LimitHolder]] = {"systemd": SystemdScope, "cgroup": ControlGroup, "watchdog": Watchdog}


def _own_group() -> Path | None:
    """The folder of this process's memory control group, of version 1."""
    groups = (group.folder for group in proc.memory_groups() if not group.version_2)
    return next((folder for folder in groups if folder.is_dir()), None)


def _own_bytes(pid: int) -> int:
    """Return the bytes that a process holds beside the page cache, without the code of libraries, which all share."""
    try:
        found = proc.fields(f"{pid}/status")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(proc.in_bytes(found[name]) for name in ("RssAnon", "RssShmem") if name in found)
