"""Measurements of a disk are kept for the next time. A cache that cannot be used costs a warning and no more."""

import contextlib
import datetime
import errno
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from pipeline.checkpoints.shard import Shard
from pipeline.reading.reading import DEFAULT, Reading
from pipeline.system.guard import attempt
from pipeline.system.proc import mounts
from pipeline.system.small_files import read_json_file
from pipeline.system.written_files import writing

VERSION = 2


def cache_file() -> Path | None:
    """Where measurements are kept, if there is such a place."""
    return attempt(
        "there is no folder for caches",
        lambda: Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penstock" / "reading.json",
        None,
        "how the disk is best read is measured and not kept; set XDG_CACHE_HOME",
    )


def disk_key(shard: Shard, beside: bool) -> str:
    """The file system and what it is mounted from, and the machine: device numbers may change when it starts anew."""
    device = f"{os.major(shard.identity.device)}:{os.minor(shard.identity.device)}"
    found = [f"{mount.kind} {mount.source}" for mount in mounts() if mount.device == device]
    mounted = os.fsencode(found[-1]).decode(errors="backslashreplace") if found else f"device {device}"
    used = f"{torch.get_num_threads()} threads compute" if beside else "nothing beside"
    return f"{mounted} on {platform.node()}, {platform.release()}, {os.cpu_count()} cores, {used}"


def kept(cache: Path | None, key: str) -> dict[Reading, float] | None:
    """Return the rates measured before, if a cache that makes sense knows them."""
    if cache is None or not os.path.lexists(cache):
        return None
    return attempt(
        f"{cache}: cannot be used", lambda: _read_kept(cache, key), None, "the disk is measured again; delete it"
    )


def _read_kept(cache: Path, key: str) -> dict[Reading, float] | None:
    found = read_json_file(cache)
    if found["version"] != VERSION or key not in found["disks"]:
        return None
    rates = {Reading(**one["reading"]): float(one["bytes_per_second"]) for one in found["disks"][key]["rates"]}
    return rates if rates[DEFAULT] > 0 else None


def keep(cache: Path | None, key: str, rates: Mapping[Reading, float]) -> None:
    """Add a disk to the cache; where that fails the next model measures again."""
    entries = [{"reading": asdict(one), "bytes_per_second": rate} for one, rate in rates.items()]
    if cache is not None:
        attempt(
            f"{cache}: how the disk is best read cannot be kept",
            lambda: _write_kept(cache, key, {"measured": datetime.date.today().isoformat(), "rates": entries}),
            None,
            "it is measured again next time; set XDG_CACHE_HOME to a folder that can be written",
        )


def _write_kept(cache: Path, key: str, measured: Mapping[str, object]) -> None:
    """By renaming a whole file. What makes no sense is replaced, but only if it is a file."""
    if os.path.lexists(cache) and not cache.is_file():
        raise OSError(errno.EEXIST, "is not a plain file", str(cache))
    disks = {}
    with contextlib.suppress(Exception):
        found = read_json_file(cache) if cache.exists() else {}
        disks = dict(found["disks"]) if found.get("version") == VERSION else {}
    cache.parent.mkdir(parents=True, exist_ok=True)
    with writing(cache) as file:
        file.write(json.dumps({"version": VERSION, "disks": {**disks, key: measured}}, indent=1).encode())
