"""Measures in a few seconds at what rates this machine moves and computes a model: a forecast needs them."""

import asyncio
import contextlib
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from actors.core.message import GroupKey
from pipeline.config import Config
from pipeline.engine.residency import NOTHING_STAYS
from pipeline.errors import ConfigError
from pipeline.formats.parts import EXPERT, kind_of
from pipeline.generation.build import build
from pipeline.generation.model_runtime import ModelRuntime
from pipeline.generation.pass_size import LEAST_TOKENS
from pipeline.models.model_config import read_config
from pipeline.state.blocks import BLOCK_TOKENS, blocks_for
from pipeline.tools.bench.arm_program import Progress
from pipeline.tools.bench.expert_floors import expert_floors
from pipeline.tools.bench.expert_passes import expert_passes
from pipeline.tools.bench.floors import Floors, Loaded, spread_tokens
from pipeline.tools.bench.forecast import MeasuredCompute, Rates
from pipeline.tools.bench.read_rates import SWEEP_SECONDS, sweep

ROUNDS = 5
UPLOADS = 8
TIMED_LAYERS = 4
"""So many layers are computed, the first of each kind, and the head."""
LARGER = (1, 4, 16)
"""Batches so many times as large are computed, from which follows what more tokens cost."""
LARGE = 1024
"""From here on twice as many tokens take twice as long: two batches are enough."""


async def measure_rates(folder: Path, settings: Config, tokens: int, progress: Progress) -> Rates:
    """Measure the disk, H2D and computing of so many tokens a pass, each alone: medians of a few rounds.

    Raises ConfigError and CheckpointError as opening the model does.
    """
    batches = _batches(tokens, settings.max_requests * (read_config(folder).max_positions - 1))
    room = _with_room(settings, batches[-1])
    passes = await expert_passes(folder, settings, tokens, progress)
    async with contextlib.aclosing(await asyncio.to_thread(build, folder, room)) as runtime:
        floors = Floors(runtime, NOTHING_STAYS)
        progress("touching all slots once")
        await sweep(runtime, runtime.source)
        whole = await floors.load(shared=True)
        kinds = runtime.config.layer_kinds
        timed = {*range(TIMED_LAYERS), *map(kinds.index, {*kinds}), len(kinds)}
        some = Loaded(tuple(one for one in whole.messages if one.layer in timed), aliased=True)
        disk, h2d, slowdowns = [], [], []
        computed: dict[int, list[_Computed]] = {batch: [] for batch in batches}
        experts = await expert_floors(runtime, floors, some)
        for index in range(ROUNDS):
            progress(f"round {index + 1}/{ROUNDS}: reading alone")
            disk.append(await sweep(runtime, runtime.source))
            if len(runtime.device.places) > 1:
                progress(f"round {index + 1}/{ROUNDS}: copying alone")
                h2d.append(await _h2d_bytes_per_second(floors, runtime))
            for batch, rounds in computed.items():
                progress(f"round {index + 1}/{ROUNDS}: computing {batch} tokens alone")
                rounds.append(await _computed(floors, runtime, some, batch, decoding=experts is not None))
                if experts is not None:
                    await experts.measure(batch)
            if experts is not None and passes is None:
                progress(f"round {index + 1}/{ROUNDS}: reading experts alone")
                await experts.read(SWEEP_SECONDS)
            if runtime.device.shares_cores:
                progress(f"round {index + 1}/{ROUNDS}: both at once")
                alone = sum(computed[tokens][-1].seconds.values())
                slowdowns.append(await _slowdowns(floors, runtime, some, tokens, disk[-1], alone))
        read_and_compute = zip(*slowdowns or [(1.0, 1.0)], strict=True)
        read_slowdown, compute_slowdown = (max(1.0, statistics.median(each)) for each in read_and_compute)
        runtime.device.have_run()
        of_experts = {} if experts is None else {EXPERT: experts.compute()}
        rates = Rates(
            statistics.median(disk),
            statistics.median(h2d) if h2d else None,
            {**_computes(computed, runtime.catalog.parameters()), **of_experts},
            statistics.median(one.begin_seconds for one in computed[tokens]),
            read_slowdown,
            compute_slowdown,
        )
        if experts is None:
            return rates
        waits = await experts.waits(tokens, passes, rates)
        return replace(rates, expert_waits=waits, products=experts.products())


def _batches(tokens: int, most: int) -> list[int]:
    """The tokens themselves, and batches from which follows what others cost: larger ones, or one that is smaller.

    Raises ConfigError for more tokens than requests can have at a time, `most`.
    """
    if tokens > most:
        raise ConfigError(f"--batch-tokens: need at most {most}, all that max_requests can have at once, have {tokens}")
    larger = [tokens * times for times in LARGER if times < LARGER[-1] or tokens * times <= LARGE]
    fit = [batch for batch in larger if batch <= most]
    return fit if len(fit) > 1 else [max(1, tokens // LARGER[1]), tokens]


def _with_room(settings: Config, tokens: int) -> Config:
    """Settings with which so many tokens fit into one pass, and nothing stays."""
    lengths = spread_tokens(tokens, min(tokens, settings.max_requests))
    return replace(
        settings,
        residency=False,
        max_tokens_per_pass=max(settings.max_tokens_per_pass or LEAST_TOKENS, tokens),
        context_tokens=max(lengths) + 2,
        kv_tokens=sum(blocks_for(length + 1) for length in lengths) * BLOCK_TOKENS,
        max_requests=len(lengths),
        state_snapshots=0,
        gpu_experts=None,
        host_experts=None,
        expert_cache="none",
        cpu_experts=False,
    )


@dataclass(frozen=True, slots=True)
class _Computed:
    """One pass over some layers: seconds by group, and those in which no group was computed."""

    seconds: Mapping[GroupKey, float]
    begin_seconds: float


async def _computed(floors: Floors, runtime: ModelRuntime, some: Loaded, tokens: int, *, decoding: bool) -> _Computed:
    """Tokens of decoding where each has a request of its own, or else of prompts."""
    lengths = spread_tokens(tokens, min(tokens, runtime.settings.max_requests))
    if decoding and max(lengths) == 1:
        await floors.decoded(some, tokens)
        whole, seconds = await floors.decoded(some, tokens)
    else:
        await floors.compute(some, lengths)
        started = time.perf_counter()
        seconds = await floors.compute(some, lengths)
        whole = time.perf_counter() - started
    groups = {(one.layer, one.group): each for one, each in zip(some.messages, seconds, strict=True)}
    return _Computed(groups, whole - sum(seconds))


async def _slowdowns(
    floors: Floors, runtime: ModelRuntime, some: Loaded, tokens: int, alone_rate: float, alone_seconds: float
) -> tuple[float, float]:
    """Return the factors by which reading, and computing, take longer while the other goes on."""
    lengths = spread_tokens(tokens, min(tokens, runtime.settings.max_requests))
    took: list[float] = []
    computing = True

    async def read_on() -> list[float]:
        rates = []
        while computing:
            rates.append(await sweep(runtime, runtime.source))
        return rates

    reading, until = asyncio.create_task(read_on()), time.perf_counter() + SWEEP_SECONDS
    try:
        while not took or time.perf_counter() < until:
            took.append(sum(await floors.compute(some, lengths)))
    finally:
        computing = False
        rates = await reading
    beside = rates[:-1] or rates  # the last sweep went on when nothing was computed any more
    return alone_rate / statistics.median(beside), statistics.median(took) / alone_seconds


def _computes(
    computed: Mapping[int, list[_Computed]], parameters: Mapping[GroupKey, int]
) -> dict[str, MeasuredCompute]:
    """Return the cost by kind of group; where more tokens took less time, that was chance."""
    seconds: defaultdict[str, dict[int, float]] = defaultdict(dict)
    for tokens, rounds in computed.items():
        values = defaultdict(list)
        for one in rounds:
            for kind in {kind_of(part) for _, part in one.seconds}:
                alike = [group for group in one.seconds if kind_of(group[1]) == kind]
                values[kind].append(sum(map(one.seconds.__getitem__, alike)) / sum(map(parameters.__getitem__, alike)))
        for kind, each in values.items():
            fewer = max(seconds[kind].values(), default=0.0)
            seconds[kind][tokens] = max(fewer, statistics.median(each))
    return {kind: MeasuredCompute(batches) for kind, batches in seconds.items()}


async def _h2d_bytes_per_second(floors: Floors, runtime: ModelRuntime) -> float:
    """Upload the largest group over and over."""
    sizes = runtime.catalog.group_bytes(runtime.catalog.places[-1])
    largest = max(sizes, key=sizes.__getitem__)
    seconds, copied = await floors.upload([largest] * UPLOADS)
    return sum(copied[1:]) / seconds
