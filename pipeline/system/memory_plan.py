"""The memory plan: what the runtime will hold, holder by holder, against what the machine has."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.system.sizes import human_bytes


@dataclass(frozen=True, slots=True)
class Holding:
    """Memory that one holder keeps from open to close; `knob` is the setting that changes it, if one does."""

    holder: str
    place: str
    nbytes: int
    knob: str

    @property
    def advice(self) -> str:
        """The knob in brackets, behind a space."""
        return f" [{self.knob}]" if self.knob else ""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """All holdings, and how much memory each place has.

    By place, `limited_by` names the setting that limits it, `bounds` the limit of the process that does, and `divided`
    among how many plans what the setting says is divided.
    """

    holdings: tuple[Holding, ...]
    available: dict[str, int]
    limited_by: Mapping[str, str] = field(default_factory=dict)
    bounds: Mapping[str, str] = field(default_factory=dict)
    divided: Mapping[str, int] = field(default_factory=dict)

    def fits(self) -> bool:
        """Whether every place has what is needed there."""
        return not self.short_places()

    def short_places(self) -> list[str]:
        """The places that have less than is needed there."""
        return [place for place, have in self.available.items() if self.need(place) > have]

    def shortage(self) -> str:
        """Say what one of them needs and has, holder by holder."""
        place = self.short_places()[0]
        under = f"under {self.bounds[place]}, beside threads " if place in self.bounds else ""
        need, have = human_bytes(self.need(place)), human_bytes(self.available[place])
        if need == have:  # in three digits
            have += f", {human_bytes(self.need(place) - self.available[place])} too little"
        held = [f"{one.holder} {human_bytes(one.nbytes)}{one.advice}" for one in self.held(place)]
        return f"{place} memory: need {need}, have {have} {under}({'; '.join(held)})"

    def __str__(self) -> str:
        """One line for each holding, and one for each place with what it has."""
        lines = []
        for place, have in self.available.items():
            lines += [f"{place:<7} {human_bytes(one.nbytes):>8}  {one.holder}{one.advice}" for one in self.held(place)]
            lines.append(f"{place:<7} {human_bytes(self.need(place)):>8}  of {human_bytes(have)}")
        return "\n".join(lines)

    def held(self, place: str) -> list[Holding]:
        """Return what a place holds, each holder once: where host and device memory are one, some hold two pieces."""
        nbytes: Counter[tuple[str, str]] = Counter()
        for one in self.holdings:
            if one.place == place:
                nbytes[one.holder, one.knob] += one.nbytes
        return [Holding(holder, place, size, knob) for (holder, knob), size in nbytes.items()]

    def need(self, place: str) -> int:
        """All that is held in a place, in bytes."""
        return sum(holding.nbytes for holding in self.holdings if holding.place == place)
