"""Measures whole passes, through all lines, of a model whose experts are there, in host memory, or read: one or all."""

import asyncio
import contextlib
import itertools
import math
import time
from array import array
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from actors.core.crew import Over
from actors.core.event import Buffer
from actors.core.expert_cache import Found
from actors.core.line import Line, running
from actors.core.message import READY, GroupKey, Message
from actors.core.ports import IdleSource, Perhaps
from pipeline.checkpoints.checkpoint import open_checkpoint
from pipeline.config import Config
from pipeline.devices.open import open_device
from pipeline.engine.expert_line import ExpertLine
from pipeline.engine.expert_room import KIND
from pipeline.generation.blueprint import draw_up_fitting
from pipeline.generation.build import build
from pipeline.generation.model_runtime import ModelRuntime
from pipeline.generation.one_section import embedding_of
from pipeline.generation.parameters import SamplingParameters
from pipeline.generation.samples import chunks_of
from pipeline.generation.sequence import RunningSequence
from pipeline.models.model_config import read_config
from pipeline.tools.bench.arm_program import Progress

ROUNDS = 5
SLOTS = 16
"""The slots for experts in each place: those of a layer move beside those of the one before."""
FIRST_PASSES, PASSES = 4, 8
"""The passes in which a GPU records what is launched; those behind them are counted."""
READING_SECONDS, FEWEST_READING = 0.5, 2
"""For about how long, or in how many passes at least, all experts are read in a round."""


@dataclass(frozen=True, slots=True)
class ExpertPasses:
    """Seconds of a pass whose experts are there; host memory has all; one of each layer is read beside that; all are.

    The second is as the first where host memory is where they are computed. `layers` have experts, of which each uses
    `used`.
    """

    there_seconds: float
    copying_seconds: float
    reading_one_seconds: float
    reading_seconds: float
    layers: int
    used: float


class _Nowhere:
    """A source whose experts have been read already."""

    async def read_into(self, key: GroupKey, buffer: Buffer) -> None:
        """Leave what is there."""

    async def read_while_idle(self, key: GroupKey, buffer: Buffer, guess: Perhaps) -> None:
        """Leave what is there."""


class _LastOfLayer(_Nowhere):
    """A source that reads the last one of those that a layer wants: what host memory has goes first."""

    def __init__(self, source: IdleSource) -> None:
        self._source = source
        self._left = 0

    def wanted(self, layer: int, count: int, found: Sequence[Found], on_host: int) -> None:
        """Hear how many a layer asks for, see `ExpertStore.told`."""
        self._left = len(found[0].misses)

    async def read_into(self, key: GroupKey, buffer: Buffer) -> None:
        """Read it if it is the last one."""
        self._left -= 1
        if not self._left:
            await self._source.read_into(key, buffer)


async def expert_passes(folder: Path, settings: Config, tokens: int, progress: Progress) -> ExpertPasses | None:
    """Let so many requests decode, with few slots for experts, none of which is kept.

    None where some other group moves in each pass, or where there cannot be so many requests.
    """
    room = replace(
        settings,
        gpu_experts=SLOTS,
        host_experts=SLOTS,
        expert_cache="none",
        lookahead=False,
        cpu_experts=False,
    )
    if tokens > settings.max_requests or not await asyncio.to_thread(_only_experts_move, folder, room):
        return None
    async with contextlib.aclosing(await asyncio.to_thread(build, folder, room)) as runtime:
        if (line := runtime.expert_line) is None:
            return None
        others, one = runtime.lines[:-1], _LastOfLayer(line.source)
        ways: dict[str, IdleSource] = {"reading": line.source, "reading_one": one, "copying": _Nowhere()}
        if len(line.budgets) == 1:
            del ways["copying"]
        seconds = defaultdict[str, list[float]](list)
        async with running(others) as over:
            progress("decoding with experts that are read")  # first: their weights are what all others compute with
            once = await _pass_seconds(runtime, [runtime.lines[-1]], over, tokens, 0, 1)
            reading = 1, max(FEWEST_READING, math.ceil(READING_SECONDS / once))
            await embedding_of(runtime.sections[0]).load(seen=False)
            for index in range(ROUNDS):
                progress(f"round {index + 1}/{ROUNDS}: decoding with experts that are read, copied and there")
                for name, source in ways.items():
                    moving = replace(line, source=source).line(runtime.trace)
                    if source is one:
                        line.store.told = one.wanted
                    passes = (FIRST_PASSES, PASSES) if name == "copying" else reading
                    seconds[name].append(await _pass_seconds(runtime, [moving], over, tokens, *passes))
                async with experts_in_place(line):
                    seconds["there"].append(await _pass_seconds(runtime, [], over, tokens, FIRST_PASSES, PASSES))
        unions = line.store.statistics().unions.values()
        used = sum(one.experts for one in unions) / sum(one.passes for one in unions)
        seconds.setdefault("copying", seconds["there"])
        return ExpertPasses(
            **{f"{name}_seconds": median(each) for name, each in seconds.items()}, layers=len(unions), used=used
        )


def _only_experts_move(folder: Path, settings: Config) -> bool:
    """Whether the model has experts, and all else stays where it is computed."""
    model, device = read_config(folder), open_device(settings.device)
    if not model.expert_kinds:
        return False
    with open_checkpoint(folder, direct=settings.reading.get("direct", True)) as checkpoint:
        drawn = draw_up_fitting(model, checkpoint, settings, device)
    return len(drawn.plan.residency.stays(device.places[-1].name)) == len(drawn.catalog.order)


async def _pass_seconds(
    runtime: ModelRuntime, lines: Sequence[Line], over: Over, requests: int, first: int, passes: int
) -> float:
    """The mean of so many passes in which all requests decode, behind the first ones. Raises what a line failed with.

    These `lines` run meanwhile beside those that end with `over`.
    """
    async with running(lines) as ended:
        decoding = asyncio.create_task(_decode(runtime, requests, 1 + first + passes), name="penstock decoding")
        try:
            first_of = list[asyncio.Future[Any]]([decoding, over, ended])
            await asyncio.wait(first_of, return_when=asyncio.FIRST_COMPLETED)
            for one in (over, ended):
                if one.done() and (failure := one.result()) is not None:
                    raise failure from failure.__cause__
            ends = await decoding
        finally:
            decoding.cancel()
            await asyncio.wait([decoding])
    return (ends[-1] - ends[first]) / passes


async def _decode(runtime: ModelRuntime, requests: int, tokens: int) -> list[float]:
    """Let so many requests decode tokens, all in step; returns when each pass had ended."""
    parameters, size = SamplingParameters(max_new_tokens=tokens), runtime.config.vocabulary_size
    sequences = [RunningSequence(array("i", [1]), parameters, frozenset(), None, size) for _ in range(requests)]
    runtime.admission.submit(sequences)
    return [time.perf_counter() async for _ in chunks_of(sequences[:1])]


@contextlib.asynccontextmanager
async def experts_in_place(line: ExpertLine) -> AsyncIterator[None]:
    """Every expert that is wanted arrives at once, in whichever slot is free."""
    store, last = line.store, line.budgets[-1]

    async def arrive() -> None:
        for seq in itertools.count():
            layer, part, _ = await store.next(seq)
            store.arrive(Message(layer, part, seq, await last.acquire(KIND), READY))

    arriving = asyncio.create_task(arrive(), name="penstock experts in place")
    try:
        yield
    finally:
        arriving.cancel()
        await asyncio.wait([arriving])
