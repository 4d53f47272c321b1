"""`penstock bench throughput`, also as an arm: many requests in one open model, and how close they come to floors."""

import asyncio
import itertools
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.api import Model
from pipeline.engine.residency import Residency
from pipeline.errors import RequestError
from pipeline.generation.program import GenerationProgram
from pipeline.generation.requests import CallArguments
from pipeline.models.model_config import read_config
from pipeline.state.blocks import BLOCK_TOKENS, blocks_for
from pipeline.system.event_loop import run_async
from pipeline.tools.bench.arm_program import Progress, Row, say, serve
from pipeline.tools.bench.floors import Floors, apart, spread_tokens
from pipeline.tools.bench.load import Load, LoadSettings

REFRESH_SECONDS = 0.5
FLOOR_ROUNDS = 3
PASS_TOKENS = 512
"""At most so many tokens per pass, or one of each request where there are more requests."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """The measurements of so many requests, from the first one submitted to the last token.

    `tokens_per_second` counts generated tokens. `pass_seconds` and `pass_tokens` are medians over the passes,
    `tokens_per_pass` is the mean. `output_token_seconds` is the median over the requests of the time from one token to
    the next; None where each has only one. `moving_groups` move in every pass. `read_floor_seconds` is the time to read
    alone what a pass read, `compute_floor_seconds` to compute `pass_tokens` alone; `floor_share` is the larger by
    `pass_seconds`.
    """

    requests: int
    passes: int
    seconds: float
    tokens_per_second: float
    pass_seconds: float
    pass_tokens: float
    tokens_per_pass: float
    first_token_seconds: float
    first_token_seconds_p90: float
    output_token_seconds: float | None
    read_bytes_per_pass: float
    read_bytes_per_token: float
    token_ids: tuple[tuple[int, ...], ...]
    moving_groups: int
    read_floor_seconds: float = math.nan
    compute_floor_seconds: float = math.nan

    @property
    def floor_share(self) -> float:
        """The share of a pass that its slower floor takes: 1 is the best there can be."""
        return max(self.read_floor_seconds, self.compute_floor_seconds) / self.pass_seconds

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "floor_share": self.floor_share}


async def bench_throughput(
    folder: Path, settings: Mapping[str, Any], load: Load, requests: Sequence[int], progress: Progress
) -> list[Throughput]:
    """Measure each number of requests in turn in one open model, then the floors in the memory that it gives back.

    There is room for all requests at a time, unless `settings` say otherwise.

    Raises RequestError when a request did not deliver all its tokens.
    """
    per_request, most = load.most_tokens, max(requests)
    settings = {
        "context_tokens": per_request,
        "kv_tokens": most * blocks_for(per_request) * BLOCK_TOKENS,
        "max_requests": most,
        "max_tokens_per_pass": max(PASS_TOKENS, most),
        **settings,
    }
    progress("opening the model")
    async with Model.open(folder, **settings) as model:
        await measure(model, load.warm_up, 1, lambda text: None)
        rows = [await measure(model, load, count, progress) for count in requests]
        residency = model.runtime.residency
    return await _with_floors(folder, settings, residency, rows, progress)


async def measure(model: Model, load: Load, requests: int, progress: Progress) -> Throughput:
    """Run so many requests in an open model. Raises RequestError when one did not deliver all its tokens."""
    prompts = load.prompts(requests, model.runtime.config.vocabulary_size)
    clock = PassClock(model.runtime.program)
    before, started = model.statistics(), time.perf_counter()
    watching = asyncio.create_task(_watch(model, requests, load.new_tokens, progress))
    try:
        runs = [_Run(model, prompt, load.new_tokens, clock) for prompt in prompts]
        delays = load.arrivals(requests)
        await asyncio.gather(*(run.after(delay) for run, delay in zip(runs, delays, strict=True)))
    finally:
        watching.cancel()
    seconds, after = time.perf_counter() - started, model.statistics()
    tokens, passes = after.tokens - before.tokens, after.passes - before.passes
    if tokens != requests * load.new_tokens:
        raise RequestError(f"{requests} requests: need {requests * load.new_tokens} tokens sampled, have {tokens}")
    each, read = clock.passes(), after.bytes_read - before.bytes_read
    firsts = sorted(run.first_token_seconds for run in runs)
    gaps = [run.output_token_seconds for run in runs if load.new_tokens > 1]
    return Throughput(
        requests=requests,
        passes=passes,
        seconds=seconds,
        tokens_per_second=tokens / seconds,
        pass_seconds=statistics.median(seconds for seconds, _ in each),
        pass_tokens=statistics.median(tokens for _, tokens in each),
        tokens_per_pass=(after.computed_tokens - before.computed_tokens) / passes,
        first_token_seconds=statistics.median(firsts),
        first_token_seconds_p90=firsts[math.ceil(0.9 * requests) - 1],
        output_token_seconds=statistics.median(gaps) if gaps else None,
        read_bytes_per_pass=read / passes,
        read_bytes_per_token=read / tokens,
        token_ids=tuple(tuple(run.token_ids) for run in runs),
        moving_groups=after.moving_groups,
    )


class PassClock:
    """Notes when passes end, by the tokens that they deliver; times without any request are left out."""

    def __init__(self, program: GenerationProgram) -> None:
        self._program = program
        self._requests = 0
        self._busy: list[list[tuple[int, int, float]]] = []
        """One list for each time with requests: passes, tokens computed, and when that was."""

    def submitted(self) -> None:
        """Note that one more request is waited for."""
        if not self._requests:
            self._busy.append([self._now()])
        self._requests += 1

    def delivered(self) -> None:
        """Note that a token has come; the first of a pass marks its end."""
        if self._program.passes > self._busy[-1][-1][0]:
            self._busy[-1].append(self._now())

    def ended(self) -> None:
        """Note that one request is waited for no longer."""
        self._requests -= 1

    def passes(self) -> list[tuple[float, float]]:
        """Return seconds and tokens of every pass; those that delivered nothing share the time up to one that did."""
        times: list[tuple[float, float]] = []
        for marks in self._busy:
            for (passes, tokens, seconds), after in itertools.pairwise(marks):
                count = after[0] - passes
                times += [((after[2] - seconds) / count, (after[1] - tokens) / count)] * count
        return times

    def _now(self) -> tuple[int, int, float]:
        return self._program.passes, self._program.computed_tokens, time.perf_counter()


@dataclass(slots=True)
class _Run:
    """One request, and when its tokens came."""

    model: Model
    prompt: list[int]
    new_tokens: int
    clock: PassClock
    token_ids: list[int] = field(default_factory=list)
    submitted: float = math.nan
    came: list[float] = field(default_factory=list)

    async def after(self, seconds: float) -> None:
        """Submit it in so many seconds and wait for its end."""
        await asyncio.sleep(seconds)
        arguments: CallArguments = {"max_new_tokens": self.new_tokens, "temperature": 0.0, "ignore_eos": True}
        self.clock.submitted()
        self.submitted = time.perf_counter()
        async for chunk in self.model.stream(self.prompt, **arguments):
            self.clock.delivered()
            self.came.append(time.perf_counter())
            self.token_ids += chunk.token_ids
        self.clock.ended()
        if len(self.token_ids) != self.new_tokens:
            raise RequestError(f"a request: need {self.new_tokens} new tokens delivered, have {len(self.token_ids)}")

    @property
    def first_token_seconds(self) -> float:
        """The seconds from submission to the first token."""
        return self.came[0] - self.submitted

    @property
    def output_token_seconds(self) -> float:
        """The mean seconds from one token to the next."""
        return (self.came[-1] - self.came[0]) / (self.new_tokens - 1)


async def _with_floors(
    folder: Path, settings: Mapping[str, Any], residency: Residency, rows: Sequence[Throughput], progress: Progress
) -> list[Throughput]:
    """Medians of the two floors of each row.

    Groups of one kind share their device memory, so that the floors need no more than the measured run, whatever the
    size of the model. The sequences of the compute floor have no past to attend to: it is lower than what a pass with
    long contexts could reach, and so is the share.
    """
    if read_config(folder).expert_kinds:  # what a pass reads and computes follows from its tokens
        return [*rows]
    async with apart(folder, settings) as runtime:
        floors, reads = Floors(runtime, residency), []
        for index in range(FLOOR_ROUNDS):
            progress(f"reading alone, {index + 1}/{FLOOR_ROUNDS}")
            reads.append(await floors.read_seconds())
        sweep_bytes = max(1.0, runtime.source.bytes_read / (2 * FLOOR_ROUNDS))
        loaded, done = await floors.load(shared=True), []
        for row in rows:
            tokens = max(1, round(row.pass_tokens))
            progress(f"computing {tokens} tokens alone")
            share = min(1.0, row.read_bytes_per_pass / sweep_bytes)
            lengths = spread_tokens(tokens, min(tokens, row.requests, runtime.settings.max_requests))
            computes = [await floors.compute_seconds(loaded, lengths) for _ in range(1 + FLOOR_ROUNDS)][1:]
            read, compute = statistics.median(reads) * share, statistics.median(computes)
            done.append(replace(row, read_floor_seconds=read, compute_floor_seconds=compute))
        return done


async def _watch(model: Model, requests: int, new_tokens: int, progress: Progress) -> None:
    before, started = model.statistics(), time.perf_counter()
    while True:
        now = model.statistics()
        progress(
            f"{requests} requests: {now.passes - before.passes} passes, {now.tokens - before.tokens}/"
            f"{requests * new_tokens} tokens, {time.perf_counter() - started:.1f} s"
        )
        await asyncio.sleep(REFRESH_SECONDS)


def run(settings: LoadSettings) -> list[Row]:
    """Our arm of a comparison: all numbers of requests in one open model."""
    load = Load(**settings.load)
    rows = run_async(bench_throughput(Path(settings.folder), settings.options, load, settings.requests, say))
    return [row.as_dict() for row in rows]


if __name__ == "__main__":
    sys.exit(serve(run, LoadSettings, sys.argv[1:]))
