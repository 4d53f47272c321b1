"""Forecasts a pass from the rates of a machine, with the production line on virtual time. Pure."""

import bisect
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from pipeline.config import Config
from pipeline.engine.plan import Plan
from pipeline.formats.parts import kind_of
from pipeline.generation.expert_split import ProductSeconds
from pipeline.generation.pass_rates import PassRates
from pipeline.groups.catalog import WeightCatalog
from pipeline.tools.bench.steady_timings import SteadyTimings, simulated_passes

PASSES = 5
"""The first loads what stays, and the end of the last is not seen."""


class Compute(Protocol):
    """The cost of computing groups of one kind."""

    def seconds(self, nbytes: int, parameters: int, tokens: int) -> float:
        """The seconds for a group of so many bytes, which store so many parameters."""


@dataclass(frozen=True, slots=True)
class MeasuredCompute:
    """See `Compute`: seconds for each parameter, by rising numbers of tokens."""

    parameter_seconds: Mapping[int, float]

    def seconds(self, nbytes: int, parameters: int, tokens: int) -> float:
        """Interpolated between two batches, or beyond the last two."""
        batches = list(self.parameter_seconds)
        index = min(bisect.bisect_left(batches, tokens, lo=1), len(batches) - 1)
        few, many = batches[index - 1], batches[index]
        first, last = self.parameter_seconds[few], self.parameter_seconds[many]
        return parameters * (first + (last - first) * (tokens - few) / (many - few))


@dataclass(frozen=True, slots=True)
class ToldCompute:
    """See `Compute`: operations, of which a parameter takes two for each token, or reading what is stored of them."""

    operations_per_second: float
    bytes_per_second: float | None

    def seconds(self, nbytes: int, parameters: int, tokens: int) -> float:
        """The longer of both."""
        reading = nbytes / self.bytes_per_second if self.bytes_per_second else 0.0
        return max(reading, 2 * parameters * tokens / self.operations_per_second)


@dataclass(frozen=True, slots=True)
class ExpertWaits:
    """How much longer a layer takes for the first of its experts that is read, and for each more; and the same of those
    that are copied from host memory.

    `beside_seconds` are what any layer with experts takes beyond what it computes, by whole passes that were measured:
    less than nothing where things go on beside each other that were measured apart.
    """

    first_seconds: float
    next_seconds: float
    first_copied_seconds: float = 0.0
    next_copied_seconds: float = 0.0
    beside_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Rates:
    """The rates of a machine. Without an H2D rate host and device memory are one.

    `computes` are by kind of group, one of `KINDS`; `begin_seconds` is what the host does between two passes,
    sampling and embedding, while nothing is computed. `read_slowdown` and `compute_slowdown` are by how much each takes
    longer while the other goes on too: a CPU that computes shares its cores and its memory with the disk. What
    experts that are read take is told by `expert_waits`, where it was measured, and what a product by one takes on the
    CPU beside a device by `products`. `how` says how all are known.
    """

    disk_bytes_per_second: float
    h2d_bytes_per_second: float | None
    computes: Mapping[str, Compute]
    begin_seconds: float = 0.0
    read_slowdown: float = 1.0
    compute_slowdown: float = 1.0
    expert_waits: ExpertWaits | None = None
    products: ProductSeconds | None = None
    how: str = "measured"

    @property
    def of_passes(self) -> PassRates:
        """Those that choose the size of a pass."""
        return PassRates(self.disk_bytes_per_second, self.h2d_bytes_per_second, self.how)

    def contention_seconds(self, read_seconds: float, compute_seconds: float) -> float:
        """Return by how much both, which go on together until one has ended, exceed the longer of them."""
        read, compute = read_seconds * self.read_slowdown, compute_seconds * self.compute_slowdown
        if compute <= read:
            together = read_seconds + compute * (1 - 1 / self.read_slowdown)
        else:
            together = compute_seconds + read * (1 - 1 / self.compute_slowdown)
        return max(0.0, together - max(read_seconds, compute_seconds))


@dataclass(frozen=True, slots=True)
class PassForecast:
    """Seconds per pass of so many tokens, and for how long it keeps each resource busy."""

    tokens: int
    pass_seconds: float
    resource_seconds: Mapping[str, float]

    @property
    def binds(self) -> str:
        """The busiest resource."""
        return max(self.resource_seconds, key=self.resource_seconds.__getitem__)

    @property
    def tokens_per_second(self) -> float:
        """The rate at which tokens come where every token of the pass is a new one."""
        return self.tokens / self.pass_seconds

    def __str__(self) -> str:
        """How long it takes, and how fast tokens come."""
        tokens = f"{self.tokens} token{'s' * (self.tokens != 1)}"
        return f"{self.pass_seconds:.3f} s per pass of {tokens} · {self.tokens_per_second:.3g} tokens/s"


@dataclass(frozen=True, slots=True)
class Forecast(PassForecast):
    """That of one device: in `alone_seconds` it would compute, with the waits for its experts, where all else were
    there.
    """

    alone_seconds: float


def forecast(catalog: WeightCatalog, plan: Plan, settings: Config, rates: Rates, tokens: int) -> Forecast:
    """Simulate steady passes of the default policy. KV blocks that move, and attention to a long past, are left out."""
    timings = pass_timings(catalog, plan, rates, tokens)
    groups = {"gpu_groups": plan.groups, "host_groups": settings.host_groups, "queue": plan.groups}
    seconds = simulated_passes(timings, PASSES, **groups, residency=plan.residency)
    resources = timings.resources
    contention = rates.contention_seconds(resources["disk"], resources["compute"])
    alone = rates.begin_seconds + resources["compute"]
    return Forecast(tokens, statistics.fmean(seconds[1:]) + contention, resources, alone)


def pass_timings(catalog: WeightCatalog, plan: Plan, rates: Rates, tokens: int) -> SteadyTimings:
    """Return what every pass moves and computes; groups that stay do not move."""
    first, last = catalog.places[0], catalog.places[-1]
    read, sent = catalog.group_bytes(first), catalog.group_bytes(last)
    on_device, anywhere = plan.residency.arrived(last), plan.residency.arrived(first)
    h2d, parameters, computes = rates.h2d_bytes_per_second, catalog.parameters(), rates.computes
    return SteadyTimings(
        order=catalog.order,
        one_link=h2d is None,
        begin=rates.begin_seconds,
        reads={group: 0.0 if group in anywhere else size / rates.disk_bytes_per_second for group, size in read.items()},
        uploads={group: 0.0 if h2d is None or group in on_device else size / h2d for group, size in sent.items()},
        computes={
            group: computes[kind_of(group[1])].seconds(read[group], parameters[group], tokens)
            for group in catalog.order
        },
    )
