"""What is counted of experts: where they were found, how many were wanted, and what became of hints."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(slots=True)
class Uses:
    """How often an expert of a layer was in a place that was asked for it, and how often not; streamed ones apart."""

    hits: int = 0
    misses: int = 0
    streamed_hits: int = 0
    streamed_misses: int = 0

    def take_note(self, hits: int, misses: int, *, streamed: bool) -> None:
        """Count what one pass found and did not find."""
        if streamed:
            self.streamed_hits, self.streamed_misses = self.streamed_hits + hits, self.streamed_misses + misses
        else:
            self.hits, self.misses = self.hits + hits, self.misses + misses


@dataclass(slots=True)
class Unions:
    """How many experts a layer wanted, in so many passes: all together, the most in one, and computed on the host."""

    passes: int = 0
    experts: int = 0
    largest: int = 0
    on_host: int = 0

    def take_note(self, experts: int, on_host: int) -> None:
        """Count one pass, which wanted so many experts and left so many of them to the host."""
        self.passes, self.experts = self.passes + 1, self.experts + experts
        self.largest, self.on_host = max(self.largest, experts), self.on_host + on_host


@dataclass(slots=True)
class HintCounts:
    """What became of hints: `asked` for experts that were not there, of these `sent`, and then `useful` or `wasted`.

    Attributes:
        early: useful ones that had come when they were wanted.
        in_the_way: wasted ones that were still on their way when that was known.
        closed: how often the gate was closed.
    """

    asked: int = 0
    sent: int = 0
    useful: int = 0
    early: int = 0
    wasted: int = 0
    in_the_way: int = 0
    closed: int = 0


@dataclass(frozen=True, slots=True)
class ExpertStatistics:
    """What was wanted and found since the model was opened: by place, in order, and layer; and what hints did."""

    places: Mapping[str, Mapping[int, Uses]]
    unions: Mapping[int, Unions]
    hints: HintCounts
