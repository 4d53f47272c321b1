"""The memory plan: what the runtime will hold, holder by holder, against what the machine has."""

import ctypes
import functools
import os
import re
import resource
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from numbers import Integral
from pathlib import Path

from pipeline.errors import ConfigError, shown
from pipeline.guard import attempt

UNITS = {"": 1, "B": 1} | {
    f"{prefix}{unit}": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for unit, base in (("", 1000), ("B", 1000), ("I", 1024), ("IB", 1024))
}
FEWEST_BYTES = 4096
"""Whoever gives fewer without a unit has forgotten one: no setting works with so little."""
GROUP_1, GROUP_2 = ("memory.limit_in_bytes", "memory.usage_in_bytes"), ("memory.max", "memory.current")
"""The files of a control group that hold its limit and what is used, by version."""
LIMITED = "if one limits the memory, set host_memory to that"
LIMITS = {"host": "host_memory", "device": "gpu_memory"}
"""The settings of what each place has."""
SIZE = re.compile(r"\s*([0-9]{0,20}\.?[0-9]{1,20})\s*(%|[KMGT]i?B?|B|)\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Holding:
    """Memory that one holder keeps from open to close; `knob` is the setting that changes it, if one does."""

    holder: str
    place: str
    nbytes: int
    knob: str


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """All holdings, and how much memory each place has; `bounds` name the limit of the process that says so."""

    holdings: tuple[Holding, ...]
    available: dict[str, int]
    bounds: Mapping[str, str] = field(default_factory=dict)

    def fits(self) -> bool:
        """Whether every place has what is needed there."""
        return not self.short_places()

    def short_places(self) -> list[str]:
        """The places that have less than is needed there."""
        return [place for place, have in self.available.items() if self.need(place) > have]

    def shortage(self) -> str:
        """What one of them needs and has, holder by holder."""
        place = self.short_places()[0]
        under = f"under {self.bounds[place]}, beside threads " if place in self.bounds else ""
        need, have = human_bytes(self.need(place)), human_bytes(self.available[place])
        return f"{place} memory: need {need}, have {have} {under}({'; '.join(_lines(self.held(place)))})"

    def __str__(self) -> str:
        """One line for each holding, and one for each place with what it has."""
        lines = []
        for place, have in self.available.items():
            lines += [f"{place:<7} {human_bytes(one.nbytes):>8}  {_named(one)}" for one in self.held(place)]
            lines.append(f"{place:<7} {human_bytes(self.need(place)):>8}  of {human_bytes(have)}")
        return "\n".join(lines)

    def held(self, place: str) -> list[Holding]:
        """What is held in a place, each holder once: where host and device memory are one, some hold two pieces."""
        nbytes: Counter[tuple[str, str]] = Counter()
        for one in self.holdings:
            if one.place == place:
                nbytes[one.holder, one.knob] += one.nbytes
        return [Holding(holder, place, size, knob) for (holder, knob), size in nbytes.items()]

    def need(self, place: str) -> int:
        """All that is held in a place, in bytes."""
        return sum(holding.nbytes for holding in self.holdings if holding.place == place)


def slot_counts(groups: int, *, two_kinds: bool) -> dict[str, int]:
    """How many slots of each kind a budget of so many groups has: half each, the odd one large.

    Attn and ffn groups differ by a factor of 4 to 7 in size, so one-size slots would waste most of the memory.
    A single slot must hold either kind.
    """
    return {"attn": groups // 2, "ffn": groups - groups // 2} if two_kinds else {"ffn": groups}


def slot_kind(group: str, *, two_kinds: bool) -> str:
    """The kind of slot that a group of this name needs.

    The slices of the head go on as the layers do, attn and ffn in turn, so that a pass ends without waiting for the
    slots of one kind while those of the other are free.
    """
    half, _, index = group.partition(".")
    like_attn = half == "attn" or (half == "head" and int(index) % 2 == 0)
    return "attn" if two_kinds and like_attn else "ffn"


def human_bytes(nbytes: float) -> str:
    """A size as people read it: three digits and a decimal unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 999.5:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.4g} TB"


def available_host_bytes() -> int:
    """What this process may still take: the machine's available memory, or its control group's limit if smaller."""
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
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available, limit, promised = (
        int(fields[name].split()[0]) * 1024 for name in ("MemAvailable", "CommitLimit", "Committed_AS")
    )
    heeds_limit = Path("/proc/sys/vm/overcommit_memory")
    strict = heeds_limit.exists() and heeds_limit.read_text().strip() == "2"
    return min(available, max(0, limit - promised)) if strict else available


def _control_groups() -> list[tuple[int, int]]:
    """The limit of each control group that counts this process's memory, and what of it is used."""
    found = []
    own = Path("/proc/self/cgroup")
    for line in os.fsdecode(own.read_bytes()).split("\n") if own.exists() else ():
        hierarchy, _, controllers_and_path = line.partition(":")
        controllers, _, path = controllers_and_path.partition(":")
        version_2 = hierarchy == "0"
        if not (version_2 or "memory" in controllers.split(",")):
            continue
        root = Path("/sys/fs/cgroup" if version_2 else "/sys/fs/cgroup/memory")
        group = root / path.lstrip("/")
        group = group if group.is_dir() else root  # within a container the path may be that of its host
        read = functools.partial(_limit_and_use, group, version_2)
        limit = attempt(f"{group}: the memory limit cannot be read", read, None, LIMITED)
        found += [limit] if limit else []
    return found


def _limit_and_use(group: Path, version_2: bool) -> tuple[int, int] | None:
    """Cached pages that nobody has touched lately do not count: the kernel takes them first."""
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
    """What this process occupies now."""
    return attempt(
        "what this process occupies cannot be read",
        lambda: int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize(),
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "the most that it ever did is taken instead",
    )


def free_disk_bytes(folder: str | Path) -> int:
    """What may still be written in a folder. Raises ConfigError where there is none."""
    if not Path(folder).is_dir():
        raise ConfigError(f"kv_disk: need a folder on a disk, have {str(folder)!r}, which is none")
    return shutil.disk_usage(folder).free


def parse_bytes(setting: str, value: object, whole: int | None = None) -> int:
    """Bytes from a number of them, or from a text: "8GiB", "8 GB", "1.5g" or "8000000000".

    The B may be left out: G is 1000**3, and Gi 1024**3. Of a `whole`, "80%" is a share. Raises ConfigError.
    """
    number, unit = _number_and_unit(value)
    if number <= 0 or (unit == "%" and (whole is None or number > 100)):
        share = "" if whole is None else ', or a share as "80%"'
        raise ConfigError(f'{setting}: need bytes, or a size as "10GiB" or "1.8GB"{share}; have {shown(value)}')
    if not unit and number < FEWEST_BYTES:
        raise ConfigError(
            f'{setting}: a number without a unit is in bytes, and {shown(value)} are too few; add the unit, as in "8GB"'
        )
    return int(number * (whole or 0) / 100) if unit == "%" else int(number * UNITS[unit])


def _number_and_unit(value: object) -> tuple[Decimal, str]:
    """0 where it is neither a number of bytes nor a size."""
    if isinstance(value, Integral) and not isinstance(value, bool):
        return Decimal(int(value)), ""
    found = SIZE.fullmatch(value) if isinstance(value, str) else None
    return (Decimal(found[1]), found[2].upper()) if found else (Decimal(0), "")


def _named(holding: Holding) -> str:
    return f"{holding.holder} [{holding.knob}]" if holding.knob else holding.holder


def _lines(holdings: Iterable[Holding]) -> list[str]:
    return [f"{item.holder} {human_bytes(item.nbytes)}" + (f" [{item.knob}]" if item.knob else "") for item in holdings]
