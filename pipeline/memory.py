"""The memory plan: what the runtime will hold, holder by holder, against what the machine has."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Holding:
    """Memory that one holder keeps from open to close; `knob` is the setting that changes it."""

    holder: str
    place: str
    nbytes: int
    knob: str


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """All holdings, and how much memory each place has."""

    holdings: tuple[Holding, ...]
    available: dict[str, int]

    def check(self) -> None:
        """Refuse a plan that cannot fit. Raises ConfigError with need, have, and the knob of the largest holding."""
        for place, have in self.available.items():
            held = [holding for holding in self.holdings if holding.place == place]
            need = sum(holding.nbytes for holding in held)
            if need > have:
                largest = max(held, key=lambda holding: holding.nbytes)
                raise ConfigError(
                    f"{place} memory: need {human_bytes(need)}, have {human_bytes(have)} "
                    f"({'; '.join(_lines(held))}); lower {largest.knob}"
                )

    def __str__(self) -> str:
        return "\n".join(_lines(self.holdings))


def slot_counts(groups: int, *, two_kinds: bool) -> dict[str, int]:
    """How many slots of each kind a budget of so many groups has: half each, the odd one large.

    Attn and ffn groups differ by a factor of 4 to 7 in size, so one-size slots would waste most of the memory
    (design.md, section 5). A single slot must hold either kind.
    """
    return {"attn": groups // 2, "ffn": groups - groups // 2} if two_kinds else {"ffn": groups}


def human_bytes(nbytes: float) -> str:
    """A size as people read it: three digits and a decimal unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 999.5:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.4g} TB"


def available_host_bytes() -> int:
    """What this process may still take: the machine's available memory, or its control group's limit if smaller."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    group = _control_group()
    limit, used = group / "memory.max", group / "memory.current"
    if limit.exists() and used.exists() and (bound := limit.read_text().strip()) != "max":
        available = min(available, int(bound) - int(used.read_text()))
    return available


def _control_group() -> Path:
    """The folder of this process's version 2 control group."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        hierarchy, _, path = line.split(":", 2)
        if hierarchy == "0":
            return Path("/sys/fs/cgroup") / path.lstrip("/")
    return Path("/sys/fs/cgroup")


def _lines(holdings: Iterable[Holding]) -> list[str]:
    return [f"{item.holder} {human_bytes(item.nbytes)} [{item.knob}]" for item in holdings]
