"""The page on which everything is put together: budgets added up holder by holder, the line wired."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from actors.core.budget import Budget
from actors.core.crew import Over
from actors.core.line import Line, running
from actors.core.ports import PrefetchPolicy
from actors.core.trace import Trace
from pipeline.checkpoints.checkpoint import Checkpoint, open_checkpoint
from pipeline.config import Config
from pipeline.devices.memory import Memory
from pipeline.devices.open import open_device
from pipeline.devices.port import Device, Place
from pipeline.devices.spinning import warn_of_spinning
from pipeline.engine.actor_names import ACTORS
from pipeline.engine.plan import Plan
from pipeline.engine.policies import find_policy, fit_policy
from pipeline.engine.residency import Residency
from pipeline.engine.wiring import Parts, Wired, slots_until_computed, wire
from pipeline.generation.admission import Admission
from pipeline.generation.batching import Batcher
from pipeline.generation.blueprint import Blueprint, draw_up_fitting, say_remarks
from pipeline.generation.model_plan import ModelPlan
from pipeline.generation.pass_inputs import PassInputs
from pipeline.generation.program import GenerationProgram
from pipeline.groups.catalog import WeightCatalog
from pipeline.models.config import ModelConfig, read_config
from pipeline.models.row_blocks import RowBlocks
from pipeline.reading.checksums import Checking, Checksums, choose_checking
from pipeline.reading.embedding import EmbeddingRows
from pipeline.reading.reading_choice import ReadingChoice, choose_reading
from pipeline.reading.source import CheckpointSource
from pipeline.state.blocks import BlockPool
from pipeline.state.kv import KeyValueCache
from pipeline.state.kv_room import KvRoom
from pipeline.system.memory_plan import MemoryPlan
from pipeline.system.promises import promise, promising

CLOCK = time.perf_counter
logger = logging.getLogger("penstock")


@dataclass(frozen=True, slots=True)
class Runtime:
    """Everything that an open model owns."""

    checkpoint: Checkpoint
    config: ModelConfig
    settings: Config
    dtype: torch.dtype
    context_tokens: int
    plan: MemoryPlan
    residency: Residency
    reading: ReadingChoice
    kv_room: KvRoom
    device: Device
    catalog: WeightCatalog
    source: CheckpointSource
    checking: Checking
    embedding: EmbeddingRows
    cache: KeyValueCache
    program: GenerationProgram
    policy: PrefetchPolicy
    wired: Wired

    @property
    def folder(self) -> Path:
        """Where the checkpoint lies."""
        return self.checkpoint.folder

    @property
    def admission(self) -> Admission:
        """All requests."""
        return self.program.admission

    @property
    def line(self) -> Line:
        """The five actors, and the user's own between them."""
        return self.wired.line

    @property
    def moving_groups(self) -> int:
        """How many weight groups move in every pass: all but those that stay where they are computed."""
        return len(self.catalog.order) - len(self.residency.stays(self.device.places[-1].name))

    def running(self) -> contextlib.AbstractAsyncContextManager[Over]:
        """Run the line of the weights, and the KV line beside it."""
        return running(self.wired.lines)

    async def aclose(self) -> None:
        """Give everything back; the lines must have stopped."""
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self.checkpoint.close)
            stack.push_async_callback(self.source.aclose)
            stack.push_async_callback(self.device.aclose)
            stack.push_async_callback(asyncio.to_thread, self.cache.close)
            stack.push_async_callback(self.program.close)


def build(folder: Path, settings: Config, trace: Trace | None = None) -> Runtime:
    """Open the checkpoint, draw up the plan, and wire the lines. Nothing runs yet.

    Raises ConfigError or CheckpointError before any memory is taken.
    """
    device, model = open_device(settings.device), read_config(folder)
    with contextlib.ExitStack() as undone:
        checkpoint = undone.enter_context(open_checkpoint(folder, direct=settings.reading.get("direct", True)))
        runtime = _build(model, checkpoint, settings, device, trace or Trace(recording=False), undone)
        undone.pop_all()
    if device.shares_cores:
        warn_of_spinning()
    logger.info("%d of %d weight groups move in each pass", runtime.moving_groups, len(runtime.catalog.order))
    logger.info("kv room %s", runtime.kv_room)
    return runtime


def _build(
    model: ModelConfig,
    checkpoint: Checkpoint,
    settings: Config,
    device: Device,
    trace: Trace,
    undone: contextlib.ExitStack,
) -> Runtime:
    """`undone` is told how to give back what is taken."""
    undone.callback(device.free)
    with promising:
        drawn = draw_up_fitting(model, checkpoint, settings, device)
        promise(device, checkpoint.folder, drawn.plan.memory)
    say_remarks(drawn, settings)
    catalog, plan = drawn.catalog, drawn.plan
    if plan.kv.moving:
        logger.warning("KV blocks %s", plan.kv)
    counts = slots_until_computed(catalog.slot_kinds.counts(settings.gpu_groups), settings.insert)
    policy = fit_policy(find_policy(settings.policy), counts)
    reading, source, checking = _weights(drawn, settings, device)
    embedding = EmbeddingRows(drawn.groups.embed, source, device, settings.max_tokens_per_pass, source.checksums)
    ahead = getattr(policy, "kv_ahead", True)
    batcher = _batcher(plan, settings)
    cache = KeyValueCache(plan.kv_layout, plan.kv, device, settings.kv_disk, lose=batcher.pool.lose, ahead=ahead)
    undone.callback(cache.close)
    program = GenerationProgram(
        drawn.model,
        catalog,
        device,
        embedding,
        cache,
        Admission(batcher, cache),
        PassInputs(device, embedding.most_rows, settings.max_requests, plan.context_tokens),
        drawn.dtype,
        RowBlocks.of(drawn.dtype, gpu=device.torch_device.type == "cuda", batch_invariant=settings.batch_invariant),
        policy.micro_batches,
    )
    wired = wire(
        Parts(
            catalog=catalog,
            source=source,
            device=device,
            program=program,
            policy=policy,
            slots=counts,
            insert=settings.insert,
            clock=CLOCK,
            trace=trace,
            companions=(cache.companion,) if plan.kv.moving else (),
            budgets=[_budget(place, plan, catalog, device) for place in device.places],
            # A queue never limits the depth before the budget behind it does, unless the user sets it so.
            queues=dict.fromkeys(ACTORS[1:], settings.gpu_groups) | dict(settings.queues),
        )
    )
    own = (plan.kv_room, device, catalog, source, checking, embedding, cache, program, policy, wired)
    return Runtime(
        checkpoint, drawn.model, settings, drawn.dtype, plan.context_tokens, plan.memory, plan.residency, reading, *own
    )


def _weights(drawn: Blueprint, settings: Config, device: Device) -> tuple[ReadingChoice, CheckpointSource, Checking]:
    """How weights are read and whether they are compared, and what does it: a thread for each lane sums up."""
    files, catalog = drawn.checkpoint.files, drawn.catalog
    reading = choose_reading(files, settings.reading, beside=device.shares_cores)
    logger.info("reads %s", reading)
    stays = drawn.plan.residency.arrived(device.places[0].name)
    checking = choose_checking(
        settings.checksums,
        shares_cores=device.shares_cores,
        moving_bytes=sum(one.needed_bytes for key, one in catalog.host.items() if key not in stays),
        rate=reading.bytes_per_second,
    )
    logger.info("checksums %s", checking)
    lanes = reading.reading.lanes
    folder = drawn.checkpoint.folder
    checksums = Checksums(drawn.groups.groups, lanes, folder) if checking.on else None
    return reading, CheckpointSource(catalog.host, files, reading.reading, checksums), checking


def _batcher(plan: ModelPlan, settings: Config) -> Batcher:
    pool, shares_answers = BlockPool(plan.kv_layout.blocks), not settings.batch_invariant
    return Batcher(pool, settings.max_requests, settings.max_waiting, share_answers=shares_answers)


def _budget(place: Place, plan: Plan, catalog: WeightCatalog, device: Device) -> Budget:
    """The memory behind the slots of one place, and that of the groups that stay there."""
    memory: Callable[[int], Memory] = device.host_memory if place is device.places[0] else device.device_memory
    cells = {kind: [memory(size) for _ in range(count)] for kind, (count, size) in plan.slots[place.name].items()}
    sizes = catalog.group_bytes(place.name)
    return Budget(place.name, cells, CLOCK, {group: memory(sizes[group]) for group in plan.residency.stays(place.name)})
