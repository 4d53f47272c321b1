"""Everything that one device owns of an open model: its line, and what its section computes with."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

from actors.core.trace import Trace
from pipeline.config import Config
from pipeline.devices.open import open_device
from pipeline.devices.port import Device
from pipeline.engine.expert_line import ExpertLine
from pipeline.engine.runtime import Runtime
from pipeline.engine.shared_source import PlannedLine, SharedSource
from pipeline.formats.parts import gives_logits
from pipeline.generation.admission import InPass
from pipeline.generation.batching import most_logit_rows
from pipeline.generation.blueprint import Blueprint
from pipeline.generation.expert_half import ExpertHalf
from pipeline.generation.expert_split import split_rates
from pipeline.generation.expert_work import ExpertWork
from pipeline.generation.head import Head
from pipeline.generation.host_experts import HostExperts
from pipeline.generation.look_ahead import LookAhead
from pipeline.generation.pass_buffers import PassBuffers
from pipeline.generation.pass_holdings import rows_scored_at_once
from pipeline.generation.pass_inputs import PassInputs
from pipeline.generation.prompt_scores import PromptScorer
from pipeline.generation.row_sampler import RowSampler
from pipeline.generation.section import Section
from pipeline.generation.token_experts import TokenExperts
from pipeline.models.row_blocks import RowBlocks
from pipeline.reading.embedding import EmbeddingRows
from pipeline.state.cell_layout import CellLayout
from pipeline.state.kv import KeyValueCache

logger = logging.getLogger("penstock")
Lose = Mapping[type[CellLayout], Callable[[int], None]]
"""What is told, by kind of layout, of each cell whose contents the disk has lost."""


def planned_line(drawn: Blueprint, device: Device) -> PlannedLine:
    """What the line of a section moves, and where that is to lie."""
    return PlannedLine(drawn.groups.groups, drawn.catalog, device, drawn.plan, drawn.experts)


class SectionRuntime(Runtime):
    """The line of one device, its KV cache, and its part of a pass. The section that computes the first layer has the
    embedding, that of the head what chooses tokens.
    """

    settings: Config

    def __init__(
        self,
        drawn: Blueprint,
        settings: Config,
        device: Device,
        shared: SharedSource,
        lose: Lose,
        undone: contextlib.ExitStack,
        number: int | None = None,
    ) -> None:
        """`undone` is told how to give back what is taken; sections have a `number` where there are several."""
        plan = drawn.plan
        super().__init__(settings, planned_line(drawn, device), shared, number)
        self.drawn, self.config, self.dtype = drawn, drawn.model, drawn.dtype
        self.embedding: EmbeddingRows | None = None
        if 0 in drawn.part.layers:
            self.embedding = EmbeddingRows(
                drawn.groups.embed,
                self.source.rows,
                device,
                plan.pass_size.tokens,
                self.source.checksums,
                stays=plan.embedding_stays,
                section=number,
            )
        ahead, folder = self.policy.kv_ahead, settings.kv_disk
        self.cache = KeyValueCache(plan.kv_layouts, plan.kv, device, folder, lose=lose, ahead=ahead, section=number)
        undone.callback(self.cache.memory.close)
        self.section = self._make_section()

    def join(self, trace: Trace | None) -> None:
        """Join the actors, when the section has joined a whole."""
        self.wire(self.section, (self.cache,) if self.drawn.plan.kv.moving else (), trace)

    @property
    def in_passes(self) -> list[InPass]:
        """What takes part in passes."""
        return [self.cache, *([] if self.expert_line is None else [self.expert_line.store])]

    def _make_section(self) -> Section:
        drawn, device, settings = self.drawn, self.device, self.settings
        plan, model, dtype, invariant = drawn.plan, drawn.model, drawn.dtype, settings.batch_invariant
        blocks = RowBlocks.of(
            device.block_rows, device.least_rows(dtype), device.repeated_rows, batch_invariant=invariant
        )
        rows, requests = plan.pass_size.tokens, settings.max_requests
        has_head = any(gives_logits(group) for _, group in drawn.catalog.order)
        logit_rows = most_logit_rows(requests) if has_head else 0
        buffers = PassBuffers(device, model, dtype, blocks, rows, logit_rows)
        inputs = PassInputs(device, blocks.padded(rows), requests, plan.context_tokens)
        return Section(
            model,
            drawn.catalog,
            device,
            self.embedding,
            self.cache,
            inputs,
            dtype,
            blocks,
            buffers,
            self._head(blocks, buffers, inputs) if has_head else None,
            self.policy.micro_batches,
            self._expert_half(blocks, buffers),
        )

    def _head(self, blocks: RowBlocks, buffers: PassBuffers, inputs: PassInputs) -> Head:
        drawn, device, tokens = self.drawn, self.device, self.drawn.plan.pass_size.tokens
        at_once = rows_scored_at_once(drawn.model, self.settings, drawn.groups, device, drawn.dtype, tokens)
        scorer = PromptScorer(device, blocks, tokens, at_once)
        sampler = RowSampler(device, self.settings.max_requests, drawn.model.vocabulary_size)
        return Head(drawn.model, drawn.catalog, blocks, buffers, inputs, scorer, sampler)

    def _expert_half(self, blocks: RowBlocks, buffers: PassBuffers) -> ExpertHalf | None:
        drawn = self.drawn
        if drawn.experts is None or self.expert_line is None:
            return None
        rows, experts = drawn.plan.pass_size.tokens, drawn.experts.catalog
        tables, checkpoint, padded = drawn.groups.tables, self.shared.checkpoint, blocks.padded(rows)
        known = TokenExperts.of(drawn.model, tables, checkpoint, padded, self.device)
        work = ExpertWork(drawn.model, drawn.catalog, experts, self.device, drawn.dtype, blocks, buffers, rows, known)
        store, host = self.expert_line.store, self._host_experts(self.expert_line)
        ahead = LookAhead.of(self.expert_line, self.settings.lookahead)
        return ExpertHalf(self.device, store, self.source, work, host, ahead)

    def _host_experts(self, line: ExpertLine) -> HostExperts | None:
        """What lets the CPU compute experts for another device, if the settings say so."""
        drawn, device, chosen = self.drawn, self.device, self.settings.cpu_experts
        if not line.room.leaves_some_to_the_cpu:
            return None
        place, rows = line.budgets[0].name, drawn.plan.pass_size.tokens
        host = HostExperts(drawn.model, line.room.catalog, place, device, open_device("cpu"), drawn.dtype, rows)
        logger.info("experts on the CPU: products are timed, once kernels are compiled, the first time for seconds")
        products = host.product_seconds(drawn.model.expert_kinds[0], line.host_slots)
        if chosen == "auto":
            link = drawn.rates.link or device.link_bytes_per_second()
            host.rates = split_rates(line.room, replace(drawn.rates, link=link), products)
            logger.info("an expert that the device has not: %s", host.rates)
        return host

    async def close_own(self) -> None:
        """Give back what is not shared with other sections; the lines must have stopped."""
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self.section.let_go)
            stack.push_async_callback(self.device.aclose)
            stack.push_async_callback(asyncio.to_thread, self.cache.memory.close)
            stack.push_async_callback(self.section.close)

    async def aclose(self) -> None:
        """Give everything back; the lines must have stopped."""
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self.shared.aclose)
            stack.push_async_callback(self.close_own)
