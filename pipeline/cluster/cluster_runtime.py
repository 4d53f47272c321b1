"""Everything that a model on a cluster owns in the coordinator's process: no weights, and no KV blocks."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from actors.core.crew import Over
from actors.core.line import Line, numbered
from actors.core.trace import Trace
from pipeline.cluster.cluster_admission import ClusterAdmission
from pipeline.cluster.cluster_sections import SectionDied, Sections
from pipeline.cluster.cluster_statistics import cluster_statistics
from pipeline.cluster.coordinator import Coordinator
from pipeline.cluster.node_traces import NodeTraces
from pipeline.cluster.placing import leave_cluster
from pipeline.cluster.ray_sections import first_failure
from pipeline.cluster.section_calls import Opened
from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.generation.batching import Batcher
from pipeline.generation.description import described
from pipeline.generation.model_statistics import ModelStatistics
from pipeline.generation.one_section import OneSection
from pipeline.generation.pass_size import PassRate
from pipeline.generation.section_runtime import SectionRuntime
from pipeline.models.model_config import read_config
from pipeline.state.blocks import BlockPool, blocks_for
from pipeline.state.state_slots import StateSlots
from pipeline.system.memory_plan import MemoryPlan

logger = logging.getLogger("penstock")


class ClusterRuntime(OneSection):
    """The requests of a model whose sections are open on nodes of a cluster; they are started when it runs."""

    def __init__(
        self,
        folder: Path,
        settings: Config,
        sections: Sections,
        opened: Sequence[Opened],
        *,
        joined: bool,
    ) -> None:
        """`joined` says whether this process left Ray alone before."""
        self.folder = folder
        self.config = read_config(folder)
        self.settings = settings
        self.sections = ()
        self.remote = sections
        self.opened = opened
        self.context_tokens = min(one.context_tokens for one in opened)
        self.kv_room = min((one.kv_room for one in opened), key=lambda room: room.tokens)
        self.state_room = next((one.state_room for one in opened if one.state_room is not None), None)
        self.pass_size = min((one.pass_size for one in opened), key=lambda size: size.tokens)
        self.traces = NodeTraces(sections, len(opened))
        self._joined = joined
        self.admission = ClusterAdmission(_batcher(self), PassRate(self.pass_size))
        self.coordinator = Coordinator(self.admission, sections, self.pass_size.tokens)
        self.admission.left = self.coordinator.left
        self._begun = True

    @property
    def only(self) -> SectionRuntime:
        """None is here. Raises ConfigError."""
        raise ConfigError("cluster: this looks at a line, and those of a model on a cluster run on its nodes")

    @property
    def trace(self) -> Trace:
        """What all sections have recorded, once the recording has ended."""
        return self.traces.trace

    @contextlib.asynccontextmanager
    async def recording(self) -> AsyncIterator[None]:
        """Let all sections record what happens within. Raises SectionDied or NotBegun where one has died meanwhile."""
        async with self.traces.recording():
            yield

    @property
    def plans(self) -> Sequence[MemoryPlan]:
        """The memory plan of each section."""
        return [one.plan for one in self.opened]

    @property
    def dtype(self) -> torch.dtype:
        """What all sections compute in."""
        return self.opened[0].dtype

    @property
    def lines(self) -> Sequence[Line]:
        """None: they are on the nodes."""
        return ()

    @property
    def own_actors(self) -> Collection[str]:
        """None: the nodes name them."""
        return ()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Over]:
        """Let all sections begin anew, and run passes until one has failed."""
        started = time.monotonic()
        if not self._begun:
            self.opened, self.coordinator.counted = await self.remote.begin(), ()
            logger.warning("all sections have begun anew, after %.1f s", time.monotonic() - started)
        self._begun = False
        over: Over = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._run(over), name="penstock coordinator")
        try:
            yield over
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _run(self, over: Over) -> None:
        """Those that ran while a section died get its error; where it has failed alone, they are computed anew."""
        try:
            await first_failure([self.coordinator.run(), self.remote.watch()])
        except SectionDied as error:
            if self.admission.in_pass:
                self.admission.fail_those_that_run(error)
            over.set_result(error)
        except Exception as error:
            over.set_result(error)

    async def aclose(self) -> None:
        """End the sections, and leave the cluster where this process joined it."""
        self.admission.close()
        await self.remote.aclose()
        await leave_cluster(self._joined)

    def awaited(self) -> str:
        """What the pass waits for, as far as it is known here."""
        return "the sections have not reported that the pass is through"

    def statistics(self) -> ModelStatistics:
        """What all sections had counted when the last pass went through them."""
        latest = self.coordinator.counted or [None] * len(self.opened)
        counted = [one or opened.counted for one, opened in zip(latest, self.opened, strict=True)]
        return cluster_statistics(self.coordinator, counted)

    def describe(self) -> dict[str, Any]:
        """The settings as they took effect, as plain data; of sections also how far their times may be off."""
        each = [_numbered(number if len(self.opened) > 1 else None, one) for number, one in enumerate(self.opened)]
        sections = []
        for number, one in enumerate(self.opened):
            record, offset = one.counted.record, self.traces.offsets.get(number)
            sections.append(
                {
                    "node": record.node,
                    "device": record.device,
                    "layers": [*record.layers, *["head"] * record.has_head],
                    "gpu_groups": one.described["gpu_groups"],
                    **({} if offset is None else {"clock_uncertain_seconds": round(offset.uncertain_seconds, 9)}),
                }
            )
        return {**described(self, each), "sections": sections}


def _numbered(number: int | None, opened: Opened) -> dict[str, Any]:
    """How a section is set, with its number where there are several."""
    said = opened.described
    return {
        **said,
        "queues": {numbered(name, number): size for name, size in said["queues"].items()},
        "actors": [numbered(name, number) for name in said["actors"]],
    }


def _batcher(runtime: ClusterRuntime) -> Batcher:
    settings, room = runtime.settings, runtime.state_room
    states = None if room is None else StateSlots(room.requests, room.snapshots)
    pool = BlockPool(blocks_for(runtime.kv_room.tokens))
    shares = not settings.batch_invariant
    return Batcher(pool, settings.max_requests, settings.max_waiting, states, share_answers=shares)
