"""A section of a model on a node: what it owns there, from the first plan to the end."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

from actors.core.errors import LineError
from pipeline.cluster.cluster_statistics import NodeCounts, count
from pipeline.cluster.node_passes import HandOn, NodePasses
from pipeline.cluster.open_section import open_section
from pipeline.cluster.orders import PassOrder, SectionReport
from pipeline.cluster.section_calls import RECORDING_GONE, NodeTrace, NotBegun, Opened, SectionPlan, layers_of
from pipeline.cluster.told_sequences import ToldSequences
from pipeline.config import Config
from pipeline.engine.runtime import CLOCK
from pipeline.generation.section_runtime import SectionRuntime
from pipeline.state.kv_layout import KvLayout
from pipeline.state.state_layout import StateLayout


class SectionNode:
    """The open section. `start` begins its lines, or begins them anew."""

    def __init__(self, node: str, runtime: SectionRuntime, sequences: ToldSequences, passes: NodePasses) -> None:
        self.sequences = sequences
        self.passes = passes
        self._node = node
        self._runtime = runtime
        self._running: asyncio.Task[None] | None = None
        self._failure: BaseException = LineError("the section has not started")

    @classmethod
    async def open(
        cls, folder: Path, settings: Config, node: str, number: int, plan: SectionPlan, hand_on: HandOn
    ) -> "SectionNode":
        """Plan it, take its memory, and wire its lines. Raises ConfigError or CheckpointError before that."""
        passes = NodePasses(number, plan.owners, hand_on)
        lose = {KvLayout: passes.lost_blocks.append, StateLayout: passes.lost_states.append}
        layers = layers_of(number, plan.owners)
        runtime = await asyncio.to_thread(
            open_section, folder, settings, layers, plan.kv_tokens, plan.pass_tokens, lose
        )
        sequences = ToldSequences(runtime.drawn.model.vocabulary_size)
        passes.take_part(sequences, runtime.section)
        runtime.join(None)
        return cls(node, runtime, sequences, passes)

    async def start(self) -> None:
        """Run the lines, which know no pass and no KV block of before. Raises LineError where they cannot."""
        await self._stop("the section was started anew")
        for one in self._runtime.in_passes:
            one.fail()
        begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._running = asyncio.create_task(self._run(begun), name="penstock section")
        await asyncio.wait([begun, self._running], return_when=asyncio.FIRST_COMPLETED)
        if not begun.done():
            raise self._failure

    async def compute(self, order: PassOrder) -> SectionReport:
        """Let a pass go through. Raises what has ended the lines."""
        if self._running is None or self._running.done():
            raise self._failure
        report = await self.passes.compute(order)
        report.counted = self._count()
        return report

    def opened(self) -> Opened:
        """What the coordinator must know of it."""
        plan, runtime = self._runtime.drawn.plan, self._runtime
        rooms = plan.context_tokens, plan.kv_room, plan.state_room, plan.pass_size
        how = runtime.dtype, plan.memory, runtime.describe()
        return Opened(self._node, os.getpid(), *rooms, *how, self._count())

    def clock(self) -> float:
        """Seconds, by what its spans are timed with."""
        return CLOCK()

    def record(self) -> None:
        """Record what every actor does from now on, and nothing of before."""
        self._count()  # Operations that have ended before are not traced any more.
        trace = self._runtime.trace
        trace.clear()
        trace.recording = True

    def recorded(self) -> NodeTrace:
        """Record no more, and return what was recorded. Raises NotBegun where nothing was to be."""
        trace = self._runtime.trace
        if not trace.recording:
            raise NotBegun(RECORDING_GONE)
        self._count()  # Operations that have ended since are traced here.
        trace.recording = False
        told = NodeTrace(trace.spans, trace.counts, trace.dropped)
        trace.clear()
        return told

    def _count(self) -> NodeCounts:
        return count(self.passes.number, self._runtime, self._node, self.passes.waited_seconds)

    async def aclose(self) -> None:
        """Stop the lines and give everything back."""
        await self._stop("the section was closed")
        await self._runtime.aclose()

    async def _run(self, begun: "asyncio.Future[None]") -> None:
        try:
            async with self._runtime.running() as over, self._loading():
                begun.set_result(None)
                failure = await over
            self._failure = failure or LineError("the line ended, though its plan has no end")
        except Exception as error:
            self._failure = error
        self.passes.fail(self._failure)

    @contextlib.asynccontextmanager
    async def _loading(self) -> AsyncIterator[None]:
        """Beside the lines the embedding table comes into memory, where it stays."""
        if self._runtime.embedding is None:
            yield
            return
        loading = asyncio.create_task(self._runtime.embedding.load(seen=False), name="penstock embedding")
        try:
            yield
        finally:
            loading.cancel()
            await asyncio.wait([loading])

    async def _stop(self, why: str) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
        self.passes.fail(LineError(why))
        for line in self._runtime.lines:
            await line.at_end()
