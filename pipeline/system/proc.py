"""The kernel tells in /proc of this process, its machine and its control groups."""

import os
import resource
from pathlib import Path
from typing import NamedTuple

PROC, CONTROL_GROUPS = Path("/proc"), Path("/sys/fs/cgroup")


class MemoryGroup(NamedTuple):
    """A control group that counts the memory of this process: its folder, and whether it is of version 2."""

    folder: Path
    version_2: bool


class Mount(NamedTuple):
    """A file system: its device as "major:minor", where it is mounted, its kind, and what it is mounted from."""

    device: str
    point: Path
    kind: str
    source: str


def fields(name: str) -> dict[str, str]:
    """The lines `key: value` of a file in /proc. Raises OSError and ValueError."""
    pairs = (line.split(":", 1) for line in (PROC / name).read_text().splitlines())
    return {key: value.strip() for key, value in pairs}


def in_bytes(value: str) -> int:
    """Return what "16 kB" stands for, as the kernel writes it."""
    return int(value.split()[0]) * 1024


def own_bytes(field: int) -> int:
    """A field of /proc/self/statm: 0 is the address space, 1 what is resident, 5 the data. Raises OSError."""
    return int((PROC / "self/statm").read_text().split()[field]) * resource.getpagesize()


def memory_groups() -> list[MemoryGroup]:
    """Every control group that counts the memory of this process."""
    found = []
    for line in _lines("self/cgroup"):
        hierarchy, _, controllers_and_path = line.partition(":")
        controllers, _, path = controllers_and_path.partition(":")
        version_2 = hierarchy == "0"
        if version_2 or "memory" in controllers.split(","):
            root = CONTROL_GROUPS if version_2 else CONTROL_GROUPS / "memory"
            folder = root / path.lstrip("/")
            # Within a container the path may be that of its host.
            found.append(MemoryGroup(folder if folder.is_dir() else root, version_2))
    return found


def mounts() -> list[Mount]:
    """All file systems that are mounted, the latest last."""
    found = []
    for line in _lines("self/mountinfo"):
        place, _, what = line.partition(" - ")
        match [*place.split(" "), *what.split(" ")[:2]]:
            case [_, _, device, _, point, *_, kind, source]:
                found.append(Mount(device, Path(point.replace("\\040", " ")), kind, source))
    return found


def _lines(name: str) -> list[str]:
    """Names in it need not be UTF-8, and may hold what Python takes for the end of a line. None where it is missing."""
    path = PROC / name
    return os.fsdecode(path.read_bytes()).split("\n") if path.exists() else []
