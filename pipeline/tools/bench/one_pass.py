"""`penstock bench pass`: how close a pass comes to the slowest of its floors, and to what overlapping could gain."""

import asyncio
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actors.core.trace import Trace
from pipeline.api import Model
from pipeline.config import Config
from pipeline.devices.open import open_device
from pipeline.errors import ConfigError
from pipeline.generation.pass_size import LEAST_TOKENS
from pipeline.tools.bench.arm_program import Progress
from pipeline.tools.bench.floors import Floors, Loaded, apart, refuse_experts
from pipeline.tools.bench.machine_rates import measure_rates
from pipeline.tools.bench.planning import MOST_TOKENS, balanced_tokens, plan_model
from pipeline.tools.bench.steady_passes import room_for, steady_pass_seconds
from pipeline.tools.trace.recording import COMPUTE, Recording

PASSES_A_ROUND = 3
"""Measured at a stretch, and their mean taken: a floor's sweep is as long as one pass, but no pass like another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassReport:
    """The measurements of passes of so many `tokens`, each a list over the rounds, in seconds.

    In every round the floors, the passes, a recorded pass and one in which nothing overlaps were measured one after the
    other, so that a drift of the machine cancels in ratios. `first_wait_seconds` is how long the device waited for a
    pass's first group, `wait_seconds` the mean wait over all groups: they are alike when the line never drains between
    passes (rule 9). `both_seconds` are what reading and computing take at the same time without waiting for each other:
    what they cost each other is the machine's, what is beyond that is ours. `moving_groups` move in every pass; where
    none does, there is nothing to overlap. `aliased` when the groups of the compute floor had to share memory to fit.
    """

    model: str
    tokens: int
    pass_seconds: tuple[float, ...]
    recorded_seconds: tuple[float, ...]
    read_floor_seconds: tuple[float, ...]
    upload_floor_seconds: tuple[float, ...]
    compute_floor_seconds: tuple[float, ...]
    both_seconds: tuple[float, ...]
    sequential_seconds: tuple[float, ...]
    first_wait_seconds: tuple[float, ...]
    wait_seconds: tuple[float, ...]
    read_bytes_per_pass: float
    needed_bytes_per_pass: float
    moving_groups: int
    aliased: bool

    @property
    def _each_floor(self) -> dict[str, tuple[float, ...]]:
        floors = (self.read_floor_seconds, self.upload_floor_seconds, self.compute_floor_seconds)
        return dict(zip(("disk", "H2D", "compute"), floors, strict=True))

    @property
    def floors(self) -> list[float]:
        """The slowest floor of each round."""
        return [max(each) for each in zip(*self._each_floor.values(), strict=True)]

    @property
    def binds(self) -> str:
        """The resource with the slowest floor."""
        return max(self._each_floor, key=lambda name: statistics.median(self._each_floor[name]))

    @property
    def _best(self) -> list[float]:
        """By round, the time of reading and computing that do not wait for each other, or the slowest floor."""
        return [max(both, least) for both, least in zip(self.both_seconds, self.floors, strict=True)]

    @property
    def ratios(self) -> list[float]:
        """A pass by the slowest floor of its round: 1 is the best there can be."""
        return [one / least for one, least in zip(self.pass_seconds, self.floors, strict=True)]

    @property
    def ratios_to_both(self) -> list[float]:
        """A pass by the time in which reading and computing end that do not wait for each other, or its floor."""
        return [one / best for one, best in zip(self.pass_seconds, self._best, strict=True)]

    @property
    def gain(self) -> float:
        """The share of the possible saving that overlapping saves: (sequential - pass) / (sequential - floor)."""
        return self._gain(self.floors)

    @property
    def gain_of_both(self) -> float:
        """The same, if the best is that reading and computing do not wait for each other."""
        return self._gain(self._best)

    def _gain(self, best: Sequence[float]) -> float:
        rounds = zip(self.sequential_seconds, self.pass_seconds, best, strict=True)
        saved = [(sequential - one, sequential - least) for sequential, one, least in rounds]
        return statistics.median(have / most if most > 0 else 1.0 for have, most in saved)

    @property
    def recording_ratio(self) -> float:
        """A recorded pass by one that is not."""
        pairs = zip(self.recorded_seconds, self.pass_seconds, strict=True)
        return statistics.median(recorded / plain for recorded, plain in pairs)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        derived = ("binds", "ratios", "ratios_to_both", "gain", "gain_of_both", "recording_ratio")
        return {**asdict(self), **{name: getattr(self, name) for name in derived}}


async def tokens_of(folder: Path, settings: Mapping[str, Any], text: str, progress: Progress) -> int:
    """Tokens of a pass from a number of them, or, as "4x", so many times those that compute as long as bytes move.

    Raises ConfigError.
    """
    times, balance = (text[:-1], True) if text.endswith("x") else (text, False)
    try:
        wanted = float(times) if balance else int(times)
    except ValueError:
        wanted = 0
    if not 0 < wanted < MOST_TOKENS:
        raise ConfigError(f"--batch-tokens: need numbers, or multiples of the balance, as 1,1x,4x; have {text!r}")
    if not balance:
        return int(wanted)
    progress(f"{folder.name}: how many tokens compute as long as bytes move")
    config = Config.from_arguments(settings)
    rates = await measure_rates(folder, config, 1, progress)
    planned = await asyncio.to_thread(plan_model, folder, config, open_device(config.device, config.devices), rates, 1)
    return max(1, round(wanted * (balanced_tokens(planned) or 1)))


async def bench_pass(
    folder: Path, settings: Mapping[str, Any], tokens: int, rounds: int, progress: Progress
) -> tuple[PassReport, Recording]:
    """Measure so many rounds; the recording is the last round's."""
    refuse_experts(folder, "bench pass")
    config = Config.from_arguments(settings)
    most = max(tokens, config.max_tokens_per_pass or LEAST_TOKENS)
    settings = {**room_for(tokens), **settings, "max_tokens_per_pass": most}
    # Opened first, so that its plan counts no floor's memory; the floors have the rest of the machine.
    async with (
        Model.open(folder, **settings) as model,
        apart(folder, {**settings, "host_memory": None, "gpu_memory": None}) as runtime,
    ):
        floors = Floors(runtime, model.runtime.residency)
        progress(f"{folder.name}: loading every group once, for the compute floor")
        loaded = await floors.load()
        await floors.compute_seconds(loaded, (tokens,))
        progress(f"{folder.name}: passes in which what stays is loaded")
        await steady_pass_seconds(model, tokens, 1)
        report = await _rounds(model, floors, loaded, tokens, rounds, progress)
        return report, Recording.of(model.runtime, "bench pass")


async def _rounds(
    model: Model, floors: Floors, loaded: Loaded, tokens: int, rounds: int, progress: Progress
) -> PassReport:
    columns: dict[str, list[float]] = {}

    def note(name: str, seconds: float) -> None:
        columns.setdefault(name, []).append(seconds)

    async def streamed() -> None:
        note("pass_seconds", statistics.fmean(await steady_pass_seconds(model, tokens, PASSES_A_ROUND)))

    moved = model.statistics()
    for index in range(rounds):
        where = f"{model.runtime.folder.name}, {tokens} tokens, round {index + 1}/{rounds}"
        progress(f"{where}: reading, copying and computing alone")
        note("read_floor_seconds", await floors.read_seconds())
        note("upload_floor_seconds", await floors.upload_seconds())
        note("compute_floor_seconds", await floors.compute_seconds(loaded, (tokens,)))
        note("both_seconds", await floors.both_seconds(loaded, (tokens,)))
        progress(f"{where}: all at once")
        plain_first = index % 2 == 0  # a pass right behind another is not quite like one behind a pause
        if plain_first:
            await streamed()
        async with model.recording() as trace:
            note("recorded_seconds", statistics.fmean(await steady_pass_seconds(model, tokens, 1)))
        if not plain_first:
            await streamed()
        first, each = _waits(trace, len(loaded.messages))
        note("first_wait_seconds", first)
        note("wait_seconds", each)
        progress(f"{where}: one after the other")
        note("sequential_seconds", await floors.sequential_pass_seconds(loaded, (tokens,)))
    after = model.statistics()
    ran = after.passes - moved.passes
    return PassReport(
        model=model.runtime.folder.name,
        tokens=tokens,
        read_bytes_per_pass=(after.bytes_read - moved.bytes_read) / ran,
        needed_bytes_per_pass=(after.bytes_needed - moved.bytes_needed) / ran,
        moving_groups=after.moving_groups,
        aliased=loaded.aliased,
        **{name: tuple(seconds) for name, seconds in columns.items()},
    )


def _waits(trace: Trace, groups_per_pass: int) -> tuple[float, float]:
    """Seconds that the compute scheduler waited for the first group of the last pass, and on average for a group."""
    spans = [span for span in trace.spans if span.actor == COMPUTE]
    waits = {span.seq: span.ended - span.started for span in spans if span.what == "message"}
    last_pass = max(span.seq for span in spans) // groups_per_pass
    seqs = range(last_pass * groups_per_pass, (last_pass + 1) * groups_per_pass)
    return waits.get(seqs[0], 0.0), sum(waits.get(seq, 0.0) for seq in seqs) / groups_per_pass
