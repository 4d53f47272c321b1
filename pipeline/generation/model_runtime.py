"""Everything that an open model owns: a section for each device, and what is one for all of them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from actors.core.crew import Over
from actors.core.errors import ActorFailed
from actors.core.line import Line, running
from actors.core.trace import Trace
from pipeline.config import Config
from pipeline.devices.port import Device
from pipeline.engine.awaited import awaited
from pipeline.engine.runtime import engine_counters
from pipeline.engine.shared_source import SharedSource
from pipeline.generation.admission import Admission
from pipeline.generation.batching import Batcher
from pipeline.generation.blueprint import Blueprint
from pipeline.generation.description import described
from pipeline.generation.expert_record import experts_record
from pipeline.generation.model_plan import ModelPlan
from pipeline.generation.model_statistics import ModelStatistics, WeightsRecord, program_counters
from pipeline.generation.one_section import OneSection, embedding_of
from pipeline.generation.pass_size import PassRate
from pipeline.generation.program import GenerationProgram
from pipeline.generation.section_record import section_record
from pipeline.generation.section_runtime import Lose, SectionRuntime
from pipeline.generation.shared_pass import SharedPass
from pipeline.state.blocks import BlockPool, blocks_for
from pipeline.state.kv_layout import KvLayout
from pipeline.state.state_layout import StateLayout
from pipeline.state.state_slots import StateSlots
from pipeline.system.memory_plan import MemoryPlan


class ModelRuntime(OneSection):
    """Several `sections` compute each pass in turn, and read through one source; requests are admitted once for all."""

    def __init__(
        self,
        drawn: Sequence[Blueprint],
        settings: Config,
        devices: Sequence[Device],
        shared: SharedSource,
        trace: Trace | None,
        undone: contextlib.ExitStack,
    ) -> None:
        """Of each device what is drawn for it. `undone` is told how to give back what is taken."""
        first, plan = drawn[0], drawn[0].plan
        self.shared = shared
        self.checkpoint = shared.checkpoint
        self.folder = shared.checkpoint.folder
        self.reading, self.checking, self.source = shared.reading, shared.checking, shared.source
        self.config, self.dtype, self.formats = first.model, first.dtype, first.whole.formats
        self.context_tokens = plan.context_tokens
        self.kv_room = plan.kv_room
        self.state_room = next((one.plan.state_room for one in drawn if one.plan.state_room is not None), None)
        self.pass_size = plan.pass_size
        self.pass_rate = PassRate(plan.pass_size)
        batcher = self._batcher(plan, settings)
        lose: Lose = {KvLayout: batcher.pool.lose}
        if batcher.states is not None:
            lose = {**lose, StateLayout: batcher.states.lose}
        numbers = range(len(drawn)) if len(drawn) > 1 else [None]
        self.sections = tuple(
            SectionRuntime(one, settings.of_device(_name(device)), device, shared, lose, undone, number)
            for number, one, device in zip(numbers, drawn, devices, strict=True)
        )
        self.settings = settings if len(drawn) > 1 else self.sections[0].settings
        sections = [one.section for one in self.sections]
        pass_ = SharedPass([section.order for section in sections])
        in_passes = [*(part for one in self.sections for part in one.in_passes), pass_]
        self.program = GenerationProgram(Admission(batcher, self.pass_rate, in_passes), sections, pass_)
        trace = trace or Trace(recording=False)  # one for all
        for one in self.sections:
            one.join(trace)

    def _batcher(self, plan: ModelPlan, settings: Config) -> Batcher:
        pool, room = BlockPool(blocks_for(plan.kv_room.tokens)), self.state_room
        states = None if room is None else StateSlots(room.requests, room.snapshots)
        shares_answers = not settings.batch_invariant
        return Batcher(pool, settings.max_requests, settings.max_waiting, states, share_answers=shares_answers)

    @property
    def admission(self) -> Admission:
        """All requests."""
        return self.program.admission

    @property
    def plans(self) -> Sequence[MemoryPlan]:
        """The memory plan of each section."""
        return [one.plan for one in self.sections]

    @property
    def lines(self) -> Sequence[Line]:
        """Those of all sections."""
        return [line for one in self.sections for line in one.lines]

    @property
    def own_actors(self) -> list[str]:
        """The names of the user's own actors."""
        return [name for one in self.sections for name in one.own_actors]

    @property
    def moving_groups(self) -> int:
        """How many weight groups move in every pass, and experts may."""
        return sum(one.moving_groups for one in self.sections)

    @property
    def moving_bytes(self) -> int:
        """The bytes of weight groups that come from the disk in every pass."""
        return sum(one.moving_bytes for one in self.sections)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Over]:
        """Run the lines; beside them the embedding table comes into memory, where it stays."""
        async with running(self.lines) as over:
            seen = not self.moving_groups  # else nothing begins before tokens are known
            load = embedding_of(self.sections[0]).load(seen=seen)
            loading = asyncio.create_task(load, name="penstock embedding")
            try:
                yield over if len(self.sections) == 1 else self._located(over)
            finally:
                loading.cancel()
                await asyncio.wait([loading])

    def _located(self, over: Over) -> Over:
        """What tells the same end, but names the device of a failure."""
        located: Over = asyncio.get_running_loop().create_future()

        def tell(ended: Over) -> None:
            if not ended.cancelled() and not located.done():
                located.set_result(self._with_device(ended.result()))

        over.add_done_callback(tell)
        return located

    def _with_device(self, failure: BaseException | None) -> BaseException | None:
        """The failure with the device of its actor."""
        if not isinstance(failure, ActorFailed):
            return failure
        of_actors = {actor.name: one for one in self.sections for line in one.lines for actor in line.actors}
        section = of_actors.get(failure.actor)
        return failure if section is None else failure.on(str(section.device.torch_device))

    def awaited(self) -> str:
        """What its lines wait for."""
        return awaited(self.lines)

    def statistics(self) -> ModelStatistics:
        """Read all counters now, those of the program too."""
        catalogs = [one.catalog for one in self.sections]
        stored = sum(catalog.needed_bytes for catalog in catalogs)
        parameters = sum(sum(catalog.parameters().values()) for catalog in catalogs)
        experts = [one.expert_line for one in self.sections if one.expert_line is not None]
        waited = map(self.program.waited_seconds, range(len(self.sections)))
        sections = [section_record(number, *one) for number, one in enumerate(zip(self.sections, waited, strict=True))]
        return ModelStatistics(
            **engine_counters(self.sections),
            **program_counters(self.program, sections),
            weights=WeightsRecord(stored, parameters * self.dtype.itemsize),
            experts=experts_record(experts, self.program.computed_tokens) if experts else None,
        )

    def describe(self) -> dict[str, Any]:
        """The settings as they took effect, as plain data: what a trace file and a report say."""
        each = [one.describe() for one in self.sections]
        weights = {name: len(matrices) for name, matrices in self.formats.items()}
        return {**described(self, each), "weights": weights}

    async def aclose(self) -> None:
        """Give everything back; the lines must have stopped."""
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self.shared.aclose)
            for one in self.sections:
                stack.push_async_callback(one.close_own)
            stack.callback(self.admission.close)


def _name(device: Device) -> str:
    """What settings call it."""
    if device.torch_device.type == "cpu":
        return "cpu" if len(device.places) == 1 else "cpu-copy"
    return str(device.torch_device)
