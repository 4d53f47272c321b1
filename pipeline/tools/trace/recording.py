"""A recorded run: everything that a file or a report needs."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from actors.core.trace import Count, Span, Trace
from pipeline.engine import actor_names as names

DISK, LINK, COMPUTE = names.READER, names.UPLOADER, names.SCHEDULER
KV_DISK, KV_IN, KV_OUT = names.KV_READER, names.KV_UPLOADER, names.KV_SWAPPER
EXPERT_DISK, EXPERT_IN, EXPERT_COMPUTE = names.EXPERT_READER, names.EXPERT_UPLOADER, names.EXPERT_KEEPER
EXPERT_CPU = names.EXPERT_CPU
HANDING_ON = (names.PLANNER, names.STAGER, names.KV_PLANNER, *names.EXPERT_HANDING_ON)
"""The runtime's own actors that take no time of a resource."""
OWN = (*HANDING_ON, DISK, LINK, COMPUTE, KV_DISK, KV_IN, KV_OUT, EXPERT_DISK, EXPERT_IN, EXPERT_CPU, EXPERT_COMPUTE)
"""All others are stages of the user's."""


class Recorded(Protocol):
    """What a recording is made of: an open model, or any line."""

    @property
    def trace(self) -> Trace:
        """What all lines record into; of lines on the nodes of a cluster it comes when the recording ends."""

    def describe(self) -> dict[str, Any]:
        """How they were set, as plain data."""


@dataclass(frozen=True)
class Recording:
    """Spans and counts in the order in which they ended, and what was run.

    Attributes:
        spans, counts: times in seconds of one clock, whatever its zero.
        configuration: plain data, to be printed; "actors" lists the line's actors in order.
    """

    spans: tuple[Span, ...]
    counts: tuple[Count, ...]
    configuration: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, runtime: "Recorded", command: str) -> "Recording":
        """Take all that the trace of lines holds by now, which they share, and how they were set."""
        trace = runtime.trace
        return cls(trace.spans, trace.counts, {"command": command, **runtime.describe()})

    def since(self, started: float) -> "Recording":
        """Return what ended after that moment."""
        spans = tuple(span for span in self.spans if span.ended > started)
        return replace(self, spans=spans, counts=tuple(count for count in self.counts if count.at > started))

    @property
    def zero(self) -> float:
        """The moment from which files and charts count."""
        return min([*(span.started for span in self.spans), *(count.at for count in self.counts)], default=0.0)

    @property
    def actors(self) -> tuple[str, ...]:
        """All actors that have spans: first the line's in order, then the others as they appear."""
        seen = dict.fromkeys(span.actor for span in self.spans)
        line = [str(name) for name in self.configuration.get("actors", ()) if name in seen]
        return tuple(dict.fromkeys([*line, *seen]))
