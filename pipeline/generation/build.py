"""The page on which an open model is put together: what it holds is planned, then taken, then wired."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from actors.core.crew import Over
from actors.core.trace import Trace
from pipeline.checkpoints.checkpoint import open_checkpoint
from pipeline.config import Config
from pipeline.devices.open import open_device
from pipeline.devices.port import Device
from pipeline.engine.runtime import Runtime
from pipeline.formats import cpu_choice
from pipeline.generation.admission import Admission
from pipeline.generation.batching import Batcher, most_logit_rows
from pipeline.generation.blueprint import Blueprint, draw_up_fitting, say_remarks
from pipeline.generation.expert_half import ExpertHalf
from pipeline.generation.expert_record import experts_record
from pipeline.generation.expert_work import ExpertWork
from pipeline.generation.head import Head
from pipeline.generation.model_plan import ModelPlan
from pipeline.generation.model_statistics import ModelStatistics, WeightsRecord, program_counters
from pipeline.generation.pass_buffers import PassBuffers
from pipeline.generation.pass_holdings import rows_scored_at_once
from pipeline.generation.pass_inputs import PassInputs
from pipeline.generation.pass_rates import PassRates
from pipeline.generation.pass_size import PassRate
from pipeline.generation.program import GenerationProgram
from pipeline.generation.prompt_scores import PromptScorer
from pipeline.generation.row_sampler import RowSampler
from pipeline.generation.section import Section
from pipeline.models.model_config import read_config
from pipeline.models.row_blocks import RowBlocks
from pipeline.reading.embedding import EmbeddingRows
from pipeline.reading.reading_choice import ReadingChoice, choose_reading
from pipeline.state.blocks import BlockPool, blocks_for
from pipeline.state.cell_layout import CellLayout
from pipeline.state.kv import KeyValueCache
from pipeline.state.kv_layout import KvLayout
from pipeline.state.state_layout import StateLayout
from pipeline.state.state_slots import StateSlots
from pipeline.system.promises import promise, promising

logger = logging.getLogger("penstock")


class ModelRuntime(Runtime):
    """Everything that an open model owns."""

    settings: Config

    def __init__(
        self,
        drawn: Blueprint,
        settings: Config,
        device: Device,
        reading: ReadingChoice,
        trace: Trace | None,
        undone: contextlib.ExitStack,
    ) -> None:
        """`undone` is told how to give back what is taken."""
        plan, catalog = drawn.plan, drawn.catalog
        super().__init__(settings, drawn.checkpoint, drawn.groups.groups, catalog, device, plan, reading, drawn.experts)
        self.config = drawn.model
        self.dtype = drawn.dtype
        self.formats = drawn.groups.formats
        self.context_tokens = plan.context_tokens
        self.kv_room = plan.kv_room
        self.state_room = plan.state_room
        self.pass_size = plan.pass_size
        self.pass_rate = PassRate(plan.pass_size)
        self.embedding = EmbeddingRows(
            drawn.groups.embed,
            self.source.rows,
            device,
            plan.pass_size.tokens,
            self.source.checksums,
            stays=plan.embedding_stays,
        )
        batcher, ahead = _batcher(plan, settings), self.policy.kv_ahead
        lose: dict[type[CellLayout], Callable[[int], None]] = {KvLayout: batcher.pool.lose}
        if batcher.states is not None:
            lose[StateLayout] = batcher.states.lose
        self.cache = KeyValueCache(plan.kv_layouts, plan.kv, device, settings.kv_disk, lose=lose, ahead=ahead)
        undone.callback(self.cache.memory.close)
        experts = None if self.expert_line is None else self.expert_line.store
        self.section = self._make_section(drawn)
        self.program = GenerationProgram(Admission(batcher, self.cache, self.pass_rate, experts), self.section)
        self.wire(self.section, (self.cache,) if plan.kv.moving else (), trace)

    def _make_section(self, drawn: Blueprint) -> Section:
        plan, catalog, device, settings = drawn.plan, drawn.catalog, self.device, self.settings
        invariant = settings.batch_invariant
        blocks = RowBlocks.of(
            device.block_rows, device.least_rows(drawn.dtype), device.repeated_rows, batch_invariant=invariant
        )
        tokens, requests = plan.pass_size.tokens, settings.max_requests
        rows = self.embedding.most_rows
        scored_rows = rows_scored_at_once(drawn.model, settings, drawn.groups, device, drawn.dtype, tokens)
        buffers = PassBuffers(device, drawn.model, drawn.dtype, blocks, rows, most_logit_rows(requests))
        inputs = PassInputs(device, blocks.padded(rows), requests, plan.context_tokens)
        scorer = PromptScorer(device, blocks, rows, scored_rows)
        sampler = RowSampler(device, requests, drawn.model.vocabulary_size)
        return Section(
            drawn.model,
            catalog,
            device,
            self.embedding,
            self.cache,
            inputs,
            drawn.dtype,
            blocks,
            buffers,
            Head(drawn.model, catalog, blocks, buffers, inputs, scorer, sampler),
            self.policy.micro_batches,
            self._expert_half(drawn, blocks, buffers),
        )

    def _expert_half(self, drawn: Blueprint, blocks: RowBlocks, buffers: PassBuffers) -> ExpertHalf | None:
        if drawn.experts is None or self.expert_line is None:
            return None
        rows, experts = self.embedding.most_rows, drawn.experts.catalog
        work = ExpertWork(drawn.model, drawn.catalog, experts, self.device, drawn.dtype, blocks, buffers, rows)
        return ExpertHalf(self.device, self.expert_line.store, work, lookahead=self.settings.lookahead)

    @property
    def admission(self) -> Admission:
        """All requests."""
        return self.program.admission

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Over]:
        """Run the lines; beside them the embedding table comes into memory, where it stays."""
        async with super().running() as over:
            load = self.embedding.load(seen=not self.moving_groups)  # else nothing begins before tokens are known
            loading = asyncio.create_task(load, name="penstock embedding")
            try:
                yield over
            finally:
                loading.cancel()
                await asyncio.wait([loading])

    def statistics(self) -> ModelStatistics:
        """Read all counters now, those of the program too."""
        line, tokens = self.expert_line, self.program.computed_tokens
        stored, parameters = self.catalog.needed_bytes, sum(self.catalog.parameters().values())
        return ModelStatistics(
            **self._counters(),
            **program_counters(self.program, self.cache),
            weights=WeightsRecord(stored, parameters * self.dtype.itemsize),
            experts=None if line is None else experts_record(line, tokens),
        )

    def describe(self) -> dict[str, Any]:
        """Those of the model, too."""
        return {
            "model": f"{self.folder.name} ({self.config.family}, {self.config.layers} layers)",
            "dtype": str(self.dtype).removeprefix("torch."),
            "weights": {name: len(matrices) for name, matrices in self.formats.items()},
            **super().describe(),
            "max_requests": self.settings.max_requests,
            "max_tokens_per_pass": self.pass_size.tokens,
            "max_pass_seconds": self.pass_size.max_seconds,
            "kv_tokens": self.kv_room.tokens,
            **({} if self.state_room is None else {"state_snapshots": self.state_room.snapshots}),
            "batch_invariant": self.settings.batch_invariant,
        }

    async def aclose(self) -> None:
        """Give everything back; the lines must have stopped."""
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self.program.let_go)
            stack.push_async_callback(super().aclose)
            stack.push_async_callback(asyncio.to_thread, self.cache.memory.close)
            stack.push_async_callback(self.program.close)


def build(folder: Path, settings: Config, trace: Trace | None = None) -> ModelRuntime:
    """Open the checkpoint, draw up the plan, and wire the lines. Nothing runs yet.

    Raises ConfigError or CheckpointError before any memory is taken.
    """
    device, model = open_device(settings.device, settings.devices), read_config(folder)
    with contextlib.ExitStack() as undone:
        checkpoint = undone.enter_context(open_checkpoint(folder, direct=settings.reading.get("direct", True)))
        undone.callback(device.free)
        if device.torch_device.type == "cpu" and model.quantization.rules:
            cpu_choice.kernels()  # whose memory the plan finds taken
        with promising:
            drawn = draw_up_fitting(model, checkpoint, settings, device)
            promise(device, checkpoint.folder, drawn.plan.memory)
        reading = choose_reading(checkpoint.files, settings.reading, beside=device.shares_cores)
        drawn = _at_measured_rates(drawn, device, reading)
        promise(device, checkpoint.folder, drawn.plan.memory)
        say_remarks(drawn, settings)
        if device.torch_device.type == "cpu":
            cpu_choice.choose((one for group in drawn.groups.groups for one in group.matrices), drawn.dtype)
        if drawn.plan.kv.moving:
            states = "" if drawn.plan.state_room is None else " and recurrent states"
            logger.warning("KV blocks%s %s", states, drawn.plan.kv)
        runtime = ModelRuntime(drawn, settings, device, reading, trace, undone)
        undone.pop_all()
    logger.info("kv room %s", runtime.kv_room)
    if runtime.state_room is not None:
        logger.info("state room %s", runtime.state_room)
    logger.info("pass size %s", runtime.pass_size)
    return runtime


def _at_measured_rates(drawn: Blueprint, device: Device, reading: ReadingChoice) -> Blueprint:
    """With the plan for the rates of this machine, as far as they are known when no pass has run yet."""
    link = device.link_bytes_per_second() if drawn.plans.moved.sent else None
    return drawn.at_rates(PassRates(reading.bytes_per_second, link))


def _batcher(plan: ModelPlan, settings: Config) -> Batcher:
    pool, shares_answers = BlockPool(blocks_for(plan.kv_room.tokens)), not settings.batch_invariant
    room = plan.state_room
    states = None if room is None else StateSlots(room.requests, room.snapshots)
    return Batcher(pool, settings.max_requests, settings.max_waiting, states, share_answers=shares_answers)
