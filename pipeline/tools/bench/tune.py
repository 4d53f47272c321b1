"""`penstock tune`: many settings in simulation with measured timings, the few best for real."""

import asyncio
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actors.core.trace import Trace
from pipeline.api import Model
from pipeline.errors import ConfigError
from pipeline.generation.chunks import Output
from pipeline.generation.model_runtime import ModelRuntime
from pipeline.groups.slot_kinds import SlotKinds
from pipeline.tools.bench.candidates import (
    DEFAULT,
    DEFAULT_READING,
    Candidate,
    ReadSizes,
    Samples,
    best_readings,
    candidates,
    choose,
    choose_sizes,
    shortlist,
)
from pipeline.tools.bench.floors import apart, refuse_experts
from pipeline.tools.bench.policy_runs import recorded_run
from pipeline.tools.bench.read_rates import read_rates
from pipeline.tools.bench.steady_timings import SteadyTimings, simulated_grid, steady_seconds
from pipeline.tools.simulation.replay import Replay

QUEUES = (1, 2, 4, 8)
ROUNDS, RECORDINGS = 3, 3
"""Settings that do not differ show more than noise in 5 % of all comparisons; with two rounds they would in 31 %."""
UNMEASURED_PASSES = 2
"""The first profits from what was read before it; the last one's end is not seen."""


@dataclass(frozen=True, slots=True)
class Finalist:
    """A candidate that was run for real, in several rounds: seconds per pass."""

    candidate: Candidate
    simulated: float
    rounds: tuple[Samples, ...]

    @property
    def measured(self) -> Samples:
        """The passes of all rounds."""
        return Samples(tuple(seconds for samples in self.rounds for seconds in samples.values))

    @property
    def error(self) -> float:
        """The relative error of the simulation."""
        return self.simulated / self.measured.median - 1

    @property
    def repeated(self) -> float:
        """The excess of the slowest round over the fastest, relative to that one."""
        medians = [samples.median for samples in self.rounds]
        return max(medians) / min(medians) - 1


@dataclass(frozen=True, slots=True)
class Staying:
    """The model as it is opened without further settings, so that what fits stays: seconds per pass."""

    groups: int
    moving_groups: int
    measured: Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneReport:
    """The settings that were tried, and their results; times in seconds per pass.

    Attributes:
        groups_settings: those that say how many groups move through a place of the device, in order.
        rates: bytes per second of each way to read, and which of them was chosen.
        resources: for how long a pass keeps the disk, H2D and the computing busy.
        simulated: all candidates that fit into memory, which are read in the chosen way; `most_groups` is the largest
            budget that was asked for.
        by_lanes: the same with queues as by default, for each number of reader lanes, each with its best chunk size.
        window_bytes: what the slots of each budget take on the device.
        finalists: those that were run for real, the smallest among them, and the default settings where they fit.
        staying: what the default of `residency` would do instead.
    """

    folder: Path
    settings: Mapping[str, Any]
    groups_settings: Sequence[str]
    batch_tokens: int
    most_groups: int
    rates: Mapping[ReadSizes, Samples]
    resources: Mapping[str, float]
    simulated: Mapping[Candidate, float]
    by_lanes: Mapping[Candidate, float]
    window_bytes: Mapping[int, int]
    finalists: tuple[Finalist, ...]
    staying: Staying
    chosen: Candidate

    @property
    def effect(self) -> float:
        """The excess of the slowest finalist over the fastest, relative to that one."""
        medians = [one.measured.median for one in self.finalists]
        return max(medians) / min(medians) - 1

    @property
    def noise(self) -> float:
        """The largest excess of a finalist over itself when it is run again."""
        return max(one.repeated for one in self.finalists)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "model": str(self.folder),
            "settings": {name: str(value) for name, value in self.settings.items()},
            "batch_tokens": self.batch_tokens,
            "read_rates": [reading._asdict() | samples.as_dict() for reading, samples in self.rates.items()],
            "resource_seconds": dict(self.resources),
            "simulated": [_plain(one) | {"seconds": seconds} for one, seconds in self.simulated.items()],
            "by_lanes": [_plain(one) | {"seconds": seconds} for one, seconds in self.by_lanes.items()],
            "most_groups": self.most_groups,
            "window_bytes": {str(budget): nbytes for budget, nbytes in self.window_bytes.items()},
            "finalists": [
                _plain(one.candidate)
                | {"simulated": one.simulated, "measured": one.measured.as_dict(), "error": one.error}
                | {"repeated": one.repeated}
                for one in self.finalists
            ],
            "effect": self.effect,
            "noise": self.noise,
            "staying": {**asdict(self.staying), "measured": self.staying.measured.as_dict()},
            "chosen": self.chosen.settings,
        }


def _plain(candidate: Candidate) -> dict[str, Any]:
    return candidate.groups_and_queue | candidate.reading._asdict()


@dataclass(frozen=True, slots=True)
class Tuner:
    """One tuning: the model, the load, and how far to go."""

    folder: Path
    settings: Mapping[str, Any]
    batch_tokens: int
    most_groups: int
    passes: int
    progress: Callable[[str], None]

    async def run(self) -> TuneReport:
        """Measure, simulate, run the best. Raises ConfigError when not even the smallest budget fits into memory."""
        refuse_experts(self.folder, "tune")
        budgets = await self._budgets()
        usual = min(budgets, key=lambda pair: sum(abs(one - two) for one, two in zip(pair, DEFAULT.need, strict=False)))
        async with self._apart(*usual) as runtime:
            rates = await read_rates(runtime, self.progress)
        reading = choose_sizes(rates)
        timings = await self._timings(*candidates([usual], [usual[0]], reading))
        tried = candidates(budgets, QUEUES, reading)
        self.progress(f"simulating {len(tried)} settings")
        simulated = await asyncio.to_thread(simulated_grid, timings, tried)
        by_lanes: dict[Candidate, float] = {}
        for other in best_readings(rates):
            slower = timings.with_reads(rates[reading].median / rates[other].median)
            by_lanes |= await asyncio.to_thread(simulated_grid, slower, candidates(budgets, [DEFAULT.queue], other))
        slower = timings.with_reads(rates[reading].median / rates[DEFAULT_READING].median)
        smallest = min(tried, key=lambda one: one.need)
        predicted = {one: simulated[one] for one in [*shortlist(simulated), smallest]}
        if DEFAULT.need[:2] in budgets:
            predicted |= await asyncio.to_thread(simulated_grid, slower, [DEFAULT])
        finalists, staying = await self._measure(predicted)
        return TuneReport(
            folder=self.folder,
            settings=self.settings,
            groups_settings=[place.groups_setting for place in runtime.device.places],
            batch_tokens=self.batch_tokens,
            most_groups=self.most_groups,
            rates=rates,
            resources=timings.resources,
            simulated=simulated,
            by_lanes=by_lanes,
            window_bytes=_window_bytes(runtime, {gpu_groups for gpu_groups, _ in budgets}),
            finalists=finalists,
            staying=staying,
            chosen=choose({one.candidate: one.measured for one in finalists}),
        )

    @property
    def _load(self) -> tuple[int, int]:
        """Tokens of the prompt, and new ones: passes of one token are those of decoding, which compute the head."""
        passes = self.passes + UNMEASURED_PASSES
        return (1, passes) if self.batch_tokens == 1 else (passes * self.batch_tokens, 1)

    async def _budgets(self) -> list[tuple[int, int]]:
        """Return all `gpu_groups` and `host_groups` to try that fit into memory.

        `host_groups` as by default, and, where host memory is not the device's, as many as there are `gpu_groups`.
        """
        self.progress("opening the model with the smallest budget")
        async with Model.open(self.folder, **{**self.settings, "gpu_groups": 1, "host_groups": 1}) as model:
            places, most = model.runtime.device.places, model.runtime.config.max_positions
        need, most = sum(self._load), self.settings.get("context_tokens", most)
        if need > most:
            raise ConfigError(
                f"--batch-tokens: {self.passes} measured and {UNMEASURED_PASSES} other passes of {self.batch_tokens} "
                f"tokens need {need} positions, have {most}; lower it, or --passes"
            )
        usual = [(groups, DEFAULT.host_groups) for groups in range(1, self.most_groups + 1)]
        equal = [(groups, groups) for groups in range(1, self.most_groups + 1)]
        fitting = await self._fitting(usual)
        return fitting if len(places) == 1 else sorted({*fitting, *await self._fitting(equal)})

    async def _fitting(self, budgets: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return those of rising budgets that fit into memory. Raises ConfigError when the smallest does not."""
        for count in range(len(budgets), 0, -1):
            try:
                async with self._apart(*budgets[count - 1]):
                    return budgets[:count]
            except ConfigError:
                if count == 1:
                    raise
        return []

    def _apart(self, gpu_groups: int, host_groups: int) -> AbstractAsyncContextManager[ModelRuntime]:
        return apart(self.folder, {**self.settings, "gpu_groups": gpu_groups, "host_groups": host_groups})

    async def _timings(self, candidate: Candidate) -> SteadyTimings:
        """Take timings from the fastest of several runs: other work of the machine can only make a run slower."""
        fastest = math.inf
        for index in range(RECORDINGS):
            self.progress(f"recording a run, for the timings of the simulation: {index + 1}/{RECORDINGS}")
            runtime, trace, _ = await self._generate(candidate.settings)
            order, one_link = runtime.catalog.order, len(runtime.device.places) == 1
            seconds = statistics.median(steady_seconds(trace.spans, order))
            if seconds < fastest:
                fastest, replay = seconds, Replay.of(trace.spans, order, one_link=one_link, check_seconds=0.0)
        sizes = runtime.catalog.group_bytes(runtime.catalog.places[0])
        return SteadyTimings.of(replay, range(1, 1 + self.passes), sizes)

    async def _measure(self, predicted: Mapping[Candidate, float]) -> tuple[tuple[Finalist, ...], Staying]:
        """Run all in turn and more than once: a drift of the machine hits all alike, and what is noise is seen."""
        rounds: dict[Candidate, list[Samples]] = {candidate: [] for candidate in predicted}
        stayed: list[float] = []
        for index in range(ROUNDS):
            for candidate, samples in rounds.items():
                groups = f"gpu_groups={candidate.gpu_groups}, host_groups={candidate.host_groups}"
                self.progress(f"running for real: round {index + 1}/{ROUNDS}, {groups}, queue={candidate.queue}")
                runtime, trace, _ = await self._generate(candidate.settings)
                samples.append(Samples(tuple(steady_seconds(trace.spans, runtime.catalog.order))))
            self.progress(f"running for real: round {index + 1}/{ROUNDS}, on defaults, so that what fits stays")
            runtime, trace, _ = await self._generate({})
            stayed += steady_seconds(trace.spans, runtime.catalog.order)
        staying = Staying(len(runtime.catalog.order), runtime.moving_groups, Samples(tuple(stayed)))
        return tuple(Finalist(one, predicted[one], tuple(samples)) for one, samples in rounds.items()), staying

    async def _generate(self, tuned: Mapping[str, Any]) -> tuple[ModelRuntime, Trace, Output]:
        prompt_tokens, new_tokens = self._load
        own = {"context_tokens": prompt_tokens + new_tokens, "max_tokens_per_pass": self.batch_tokens}
        settings = {**own, **self.settings, **tuned}
        return await recorded_run(self.folder, settings, prompt_tokens, new_tokens)


def _window_bytes(runtime: ModelRuntime, budgets: Iterable[int]) -> dict[int, int]:
    """Return the bytes that the slots of each budget take on the device; a single slot must hold any group."""
    sizes, needed = runtime.catalog.group_bytes(runtime.catalog.places[-1]), {}
    for budget in sorted(budgets):
        kinds = SlotKinds.by_size(sizes, budget)
        slot_bytes = kinds.largest(sizes)
        needed[budget] = sum(count * slot_bytes[kind] for kind, count in kinds.counts(budget).items())
    return needed
