"""Settings that `penstock tune` tries, and by which rules it prefers one to another. Pure."""

import itertools
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline.config import Config
from pipeline.engine.actor_names import ACTORS
from pipeline.engine.settings import FEWEST_GROUPS
from pipeline.reading.reading import Reading

TOLERANCE = 0.01
"""Times that differ by no more than this share count as equal: then the smaller budget is better."""
FINALISTS = 3
DEFAULTS = Config()


class ReadSizes(NamedTuple):
    """A way to read the disk: reads in flight, and the bytes of one."""

    reader_lanes: int
    chunk_bytes: int


DEFAULT_READING = ReadSizes(Reading().lanes, Reading().chunk_bytes)


@dataclass(frozen=True, slots=True)
class Samples:
    """The same thing measured several times; at least once."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The value that counts."""
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """Half of the range of the middle half of the values, relative to the median: what follows a "±"."""
        if len(self.values) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return (high - low) / 2 / self.median

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"median": self.median, "spread": self.spread, "values": list(self.values)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """The settings of one trial; `queue` is the size of the queue before each actor."""

    gpu_groups: int
    host_groups: int
    queue: int
    reading: ReadSizes

    @property
    def groups_and_queue(self) -> dict[str, int]:
        """The numbers that a simulation needs, the scarcest first."""
        return {"gpu_groups": self.gpu_groups, "host_groups": self.host_groups, "queue": self.queue}

    @property
    def need(self) -> tuple[int, ...]:
        """The same numbers, to compare candidates by."""
        return tuple(self.groups_and_queue.values())

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of `Model.open`; all groups move, since what is tuned is how they do."""
        return {
            "gpu_groups": self.gpu_groups,
            "host_groups": self.host_groups,
            "queues": dict.fromkeys(ACTORS[1:], self.queue),
            **self.reading._asdict(),
            "residency": False,
        }


DEFAULT = Candidate(
    gpu_groups=FEWEST_GROUPS,
    host_groups=DEFAULTS.host_groups,
    # Without a size a queue holds as many messages as there are groups.
    queue=FEWEST_GROUPS,
    reading=DEFAULT_READING,
)


def candidates(budgets: Iterable[tuple[int, int]], queues: Sequence[int], reading: ReadSizes) -> list[Candidate]:
    """Every pair of `gpu_groups` and `host_groups` with every size of queue."""
    pairs = itertools.product(budgets, queues)
    return [Candidate(gpu_groups=gpu, host_groups=host, queue=queue, reading=reading) for (gpu, host), queue in pairs]


def best_readings(rates: Mapping[ReadSizes, Samples]) -> list[ReadSizes]:
    """For each number of lanes the fastest way to read, or the chosen one, the fewest lanes first."""
    by_lanes = {reading.reader_lanes: reading for reading in sorted(rates, key=lambda reading: rates[reading].median)}
    chosen = choose_sizes(rates)
    by_lanes[chosen.reader_lanes] = chosen
    return [by_lanes[lanes] for lanes in sorted(by_lanes)]


def choose_sizes(rates: Mapping[ReadSizes, Samples]) -> ReadSizes:
    """The fastest, but the default unless that is slower by more than both spreads, and by more than 1 %."""
    fastest = max(rates, key=lambda reading: rates[reading].median)
    noise = max(TOLERANCE, rates[fastest].spread + rates[DEFAULT_READING].spread)
    return fastest if rates[fastest].median > rates[DEFAULT_READING].median * (1 + noise) else DEFAULT_READING


def shortlist(simulated: Mapping[Candidate, float], count: int = FINALISTS) -> list[Candidate]:
    """The few best, from the seconds per pass that were simulated; of each `gpu_groups` the least that does as well.

    First those within 1 % of the best, the smallest budget first, then the others, the fastest first.
    """
    budgets: defaultdict[int, dict[Candidate, float]] = defaultdict(dict)
    for candidate, seconds in simulated.items():
        budgets[candidate.gpu_groups][candidate] = seconds
    least = [
        min((one for one in within if within[one] <= _enough(within)), key=lambda one: one.need)
        for within in budgets.values()
    ]
    enough = _enough(simulated)
    return sorted(least, key=lambda one: (0.0 if simulated[one] <= enough else simulated[one], one.need))[:count]


def _enough(seconds: Mapping[Candidate, float]) -> float:
    return min(seconds.values()) * (1 + TOLERANCE)


def choose(measured: Mapping[Candidate, Samples]) -> Candidate:
    """The least that is slower than the fastest by no more than the fastest's spread, or 1 %."""
    fastest = min(measured.values(), key=lambda samples: samples.median)
    enough = fastest.median * (1 + max(TOLERANCE, fastest.spread))
    return min((one for one, samples in measured.items() if samples.median <= enough), key=lambda one: one.need)
