"""Memory of the machine and of this process: what there is, what a control group allows, what is occupied."""

import ctypes
import functools
import os
import resource
import shutil
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.system import proc
from pipeline.system.guard import attempt
from pipeline.system.sizes import human_bytes

GROUP_1, GROUP_2 = ("memory.limit_in_bytes", "memory.usage_in_bytes"), ("memory.max", "memory.current")
"""The files of a control group that hold its limit and what is used, by version."""
LIMITED = "if one limits the memory, set host_memory to that"


def available_host_bytes() -> int:
    """Return what this process may still take: what the machine has, or its control group if that is less."""
    free_bytes = os.sysconf("SC_AVPHYS_PAGES") * resource.getpagesize()
    available = attempt(
        "what memory is available cannot be read",
        _machine_bytes,
        free_bytes,
        f"{human_bytes(free_bytes)} is free for sure; set host_memory to plan with another size",
    )
    none: list[tuple[int, int]] = []
    limits = attempt("the control groups of this process cannot be read", _control_groups, none, LIMITED)
    return min([available, *(limit - used for limit, used in limits)])


def _machine_bytes() -> int:
    """Where the kernel promises no more than it has, what it may still promise counts too."""
    found = proc.fields("meminfo")
    available, limit, promised = (proc.in_bytes(found[key]) for key in ("MemAvailable", "CommitLimit", "Committed_AS"))
    heeds_limit = proc.PROC / "sys/vm/overcommit_memory"
    strict = heeds_limit.exists() and heeds_limit.read_text().strip() == "2"
    return min(available, max(0, limit - promised)) if strict else available


def _control_groups() -> list[tuple[int, int]]:
    """The limit of each control group that counts this process's memory, and what of it is used."""
    found = []
    for group in proc.memory_groups():
        read = functools.partial(_limit_and_use, group.folder, group.version_2)
        limit = attempt(f"{group.folder}: the memory limit cannot be read", read, None, LIMITED)
        found += [limit] if limit else []
    return found


def _limit_and_use(group: Path, version_2: bool) -> tuple[int, int] | None:
    """Cached pages that were not touched lately do not count: the kernel takes them first."""
    limit, used, counts = (group / name for name in (*(GROUP_2 if version_2 else GROUP_1), "memory.stat"))
    if not (limit.exists() and used.exists()) or (bound := limit.read_text().strip()) == "max":
        return None
    counted = dict(each.split() for each in counts.read_text().splitlines()) if counts.exists() else {}
    idle = counted.get("inactive_file" if version_2 else "total_inactive_file", 0)
    return int(bound), int(used.read_text()) - int(idle)


def give_freed_back() -> None:
    """Let the C library return what was freed to the system: pages that it keeps count as this process's."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def resident_bytes() -> int:
    """Return what this process occupies now."""
    return attempt(
        "what this process occupies cannot be read",
        lambda: proc.own_bytes(1),
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "the most that it ever did is taken instead",
    )


def free_disk_bytes(folder: str | Path) -> int:
    """Return what may still be written in a folder. Raises ConfigError where there is none."""
    if folder == "" or not Path(folder).is_dir():  # "" as a path is the current folder
        raise ConfigError(f"kv_disk: need a folder on a disk, have {str(folder)!r}, which is none")
    return shutil.disk_usage(folder).free
