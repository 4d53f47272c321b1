"""One pass on one page, from top to bottom: begin, layers, head, choose, deliver."""

import asyncio
import functools
from collections.abc import Callable, Coroutine, Hashable, Mapping, Sequence
from typing import Any, ClassVar

import torch

from actors.core.budget import Slot
from actors.core.event import Event
from actors.core.message import READY, GroupKey, Message, ended
from actors.core.order import lanes
from pipeline.devices.port import Device
from pipeline.errors import RequestError
from pipeline.formats.parts import ATTN, FFN, HEAD, attends, gives_logits, kind_of
from pipeline.generation.admission import Admission
from pipeline.generation.batching import Piece
from pipeline.generation.expert_half import ExpertHalf
from pipeline.generation.fetched_rows import fetch_rows
from pipeline.generation.generation_pass import GenerationPass, token_ids
from pipeline.generation.head import Head
from pipeline.generation.micro_batches import MicroBatch, micro_batches
from pipeline.generation.pass_buffers import PassBuffers
from pipeline.generation.pass_inputs import PassInputs
from pipeline.generation.pass_work import PassWork
from pipeline.generation.prompt_scores import PromptScorer
from pipeline.generation.records import Records
from pipeline.generation.row_sampler import RowSampler
from pipeline.generation.rows_sent import Outcome
from pipeline.generation.sampling import Sampler
from pipeline.generation.sequence import RunningSequence
from pipeline.groups.catalog import WeightCatalog
from pipeline.models.model_config import ModelConfig
from pipeline.models.ops import infer
from pipeline.models.row_blocks import RowBlocks
from pipeline.reading.embedding import EmbeddingRows, embedding_failed
from pipeline.state.kv import KeyValueCache

COMPUTE = "compute"
"""The compute lane; with several micro-batches each part of a layer has a lane of its own."""


class GenerationProgram:
    """Computes passes, with the pieces that `admission` gives for each. `tokens` counts those that were delivered."""

    def __init__(
        self,
        config: ModelConfig,
        catalog: WeightCatalog,
        device: Device,
        embedding: EmbeddingRows,
        cache: KeyValueCache,
        admission: Admission,
        inputs: PassInputs,
        dtype: torch.dtype,
        row_blocks: RowBlocks,
        buffers: PassBuffers,
        scorer: PromptScorer,
        micro_batches: int = 1,
        expert_half: ExpertHalf | None = None,
    ) -> None:
        self.admission = admission
        self.order: Sequence[GroupKey] = catalog.order
        self._lanes = lanes(self.order)
        self._halfway = self.order[(len(self.order) - 1) // 2]
        self.passes = 0
        self.tokens = 0
        self.computed_tokens = 0
        self._config = config
        self._device = device
        self._embedding = embedding
        self._cache = cache
        self._inputs = inputs
        self._row_blocks = row_blocks
        self._buffers = buffers
        self._scorer = scorer
        self._head = Head(config, catalog, row_blocks, buffers, inputs, scorer)
        self._work = PassWork(config, catalog, cache, embedding, inputs, dtype, row_blocks, buffers, self._head)
        self._micro_batches = micro_batches
        self.expert_half = expert_half
        self._records = Records(device, len(catalog.order), micro_batches)
        self._sampler = RowSampler(device, admission.batcher.max_requests, config.vocabulary_size)

    async def begin(self) -> GenerationPass:
        """Wait for requests, choose those that share the pass, and fetch the embedding rows of their tokens."""
        pieces: list[Piece] = []
        while not pieces:
            pieces = await self.admission.next_pieces(self._embedding.most_rows)
            pieces, fetched = await fetch_rows(self._embedding, pieces, self._work.embeds_alike)
            if not pieces:
                self.admission.end_pass(finished=False)
        self._cache.begin(pieces)
        tokens, embeds_alike = len(token_ids(pieces)), self._work.embeds_alike(pieces)
        pass_ = GenerationPass(pieces, micro_batches(tokens, self._micro_batches, self._row_blocks))
        if self.expert_half is not None:
            self.expert_half.begin(pieces)
        pass_.scored = self._scorer.send(pieces)
        sent = self._inputs.send(pieces, pass_.cuts, upload=not embeds_alike)
        if embeds_alike:
            copy_and_embed = functools.partial(self._work.copy_and_embed, pass_)
            self._embed(pass_, copy_and_embed, (fetched, sent), ("embed", pass_.padded_rows))
        else:
            self._embed(pass_, functools.partial(self._work.embed, pass_, tokens), (fetched, sent))
        return pass_

    def ahead(self, pass_: GenerationPass) -> GenerationPass | None:
        """Begin the next pass where the same sequences go on with whatever tokens the device chooses.

        One that ends with its token has been computed once too often: what comes of that is dropped.
        """
        if pass_.in_stretches < len(self.order) or pass_.abandoned or not self._embedding.is_seen:
            return None
        if not self._work.embeds_alike(pass_.pieces):
            return None
        pass_.rows = rows = pass_.rows or self._sampler.send(pass_.last_rows)
        if not rows.prepared.done() or not rows.goes_on or len(rows.samplers) < len(pass_.pieces):
            return None
        if not (pieces := self.admission.pieces_ahead(pass_.pieces)):
            return None
        self._sampler.launch(COMPUTE, self._buffers.logits_memory, rows, pass_.last)
        parts = micro_batches(len(pieces), self._micro_batches, self._row_blocks)
        following = GenerationPass(pieces, parts, ahead=True)
        self._inputs.go_on(pieces, following.cuts)
        go_on = functools.partial(self._work.go_on, following, self._sampler)
        self._embed(following, go_on, (rows.chosen,), ("go on", following.padded_rows))
        return following

    def _embed(
        self, pass_: GenerationPass, work: Callable[[], object], after: Sequence[Event], repeats: Hashable = None
    ) -> None:
        """Launch what comes before the first layer."""
        for block in pass_.blocks:
            block.rows = self._inputs.rows(block.begin, block.end)
            block.rotary = self._buffers.rotary(block.begin, block.end)
        pass_.embedded = self._device.launch(COMPUTE, functools.partial(infer, work), after, repeats)
        for part in pass_.parts:
            part.last = pass_.embedded

    def prepare(self, pass_: GenerationPass, message: Message[Slot]) -> Coroutine[Any, Any, None] | None:
        """Wait until the KV blocks of the layer are on their way to the device, or launch its experts as they come."""
        if attends(message.group):
            return self._cache.rendezvous.prepare(message.layer)
        if self.expert_half is None or gives_logits(message.group):
            return None
        return self.expert_half.prepare(pass_, message, self._launch)

    async def check_in(self, pass_: GenerationPass, message: Message[Slot]) -> None:
        """Wait, on the host, for everything that was launched and for the group."""
        for part in pass_.parts:
            await ended(part.last)
        await ended(message.event)
        if attends(message.group):
            await ended(self._cache.layer(message.layer)[1])

    def step(self, pass_: GenerationPass, message: Message[Slot]) -> Sequence[Event]:
        """Launch half a layer, micro-batch by micro-batch, or a slice of the head; nothing if no request needs it."""
        ran = [] if pass_.abandoned else self._launches[kind_of(message.group)](self, pass_, message)
        self._tell(pass_, message, ran)
        return ran

    def stretch(self, pass_: GenerationPass, messages: Sequence[Message[Slot]]) -> Sequence[Event]:
        """Launch groups that stay as one, where that repeats: in one micro-batch of a pass that only chooses."""
        sized = len(pass_.parts) == 1 and pass_.padded_rows in self._row_blocks.repeated
        if not sized or not pass_.choosing or pass_.scored is not None or self.expert_half is not None:
            return []
        repeats = self._work.stretch_repeats(pass_, messages)
        key = repeats and self._records.admit((messages[0].key, pass_.padded_rows, repeats), len(messages))
        if key is None:
            return []
        (part,) = pass_.parts
        work = functools.partial(self._work.stretch, messages, part, self._work.logit_rows(pass_))
        part.last = self._device.launch(COMPUTE, functools.partial(infer, work), (part.last,), key)
        for message in messages:
            self._tell(pass_, message, [part.last])
        pass_.in_stretches += len(messages)
        return [part.last]

    def _tell(self, pass_: GenerationPass, message: Message[Slot], ran: Sequence[Event]) -> None:
        """Say what was launched, if anything."""
        if ran and message.key == self._halfway and not pass_.ahead:
            # While the device is busy, and before weights of the next pass are on their way to it.
            pass_.rows = self._sampler.send(pass_.last_rows)
        tell = self._cache.attended if attends(message.group) else self._cache.rendezvous.computed
        tell(message.layer, ran[-1] if ran else READY)

    def _launch_attention(self, pass_: GenerationPass, message: Message[Slot]) -> list[Event]:
        kv, arrived = self._cache.layer(message.layer)
        repeats = self._work.attention_repeats(pass_, message.layer)
        half = functools.partial(self._work.attention, message, kv)
        return self._launch_half(pass_, message, half, arrived, repeats=repeats)

    def _launch_ffn(self, pass_: GenerationPass, message: Message[Slot]) -> list[Event]:
        if self.expert_half is not None:
            added = self.expert_half.add_up(pass_, message, self._launch)
            if added is not None:
                return added
        half = functools.partial(self._work.ffn, message)
        return self._launch_half(pass_, message, half, repeats="always")

    def _launch_half(
        self,
        pass_: GenerationPass,
        message: Message[Slot],
        half: Callable[[MicroBatch], None],
        *arrived: Event,
        repeats: Hashable = None,
    ) -> list[Event]:
        """Micro-batch by micro-batch. `repeats` is what launches for the same rows depend on; None if on anything."""
        ran: list[Event] = []
        for part in pass_.parts:
            # Behind the micro-batch before, whose lane it shares: it attends to that one's keys, and fails with it.
            after, work = (*arrived, *ran[-1:]), functools.partial(half, part)
            key = repeats and (part.begin, pass_.padded_rows, repeats)
            ran.append(self._launch(message, pass_, part, work, after, key))
        return ran

    def _launch(
        self,
        message: Message[Slot],
        pass_: GenerationPass,
        part: MicroBatch,
        work: Callable[[], object],
        after: Sequence[Event] = (),
        repeats: Hashable = None,
        *,
        short: bool = False,
    ) -> Event:
        """Run `work` after what came before in this micro-batch, so that its failure is not computed with."""
        lane = COMPUTE if len(pass_.parts) == 1 else self._lanes[message.key]
        key = None
        if repeats and pass_.padded_rows in self._row_blocks.repeated:
            key = self._records.admit((message.key, message.at.buffer.tensor.data_ptr(), repeats))
        after = (message.event, *after, part.last)
        part.last = self._device.launch(lane, functools.partial(infer, work), after, key, short=short)
        return part.last

    def _launch_head(self, pass_: GenerationPass, message: Message[Slot]) -> list[Event]:
        ran: list[Event] = []
        if pass_.choosing:
            rows = self._work.logit_rows(pass_)
            work = functools.partial(self._head.logits, message, rows)
            ran.append(self._launch(message, pass_, pass_.parts[-1], work, repeats=rows))
        if pass_.scored is not None:
            work = functools.partial(self._head.score, message, pass_.scored)
            ran.append(self._launch(message, pass_, pass_.parts[-1], work, (pass_.scored.sent,)))
        return ran

    # Bound methods in the program would hold it, and its KV blocks, until garbage is collected.
    _launches: ClassVar = {ATTN: _launch_attention, FFN: _launch_ffn, HEAD: _launch_head}

    async def finish(self, pass_: GenerationPass) -> None:
        """Choose the next tokens behind the logits of the pass, and deliver them when they are known."""
        self.passes += 1
        outcomes = await self._outcomes(pass_)
        scores = [] if pass_.scored is None else await self._scorer.read(pass_.scored, pass_.last)
        self.computed_tokens += sum(len(piece.token_ids) for piece in pass_.pieces)
        self.admission.batcher.computed(pass_.pieces)
        for run, found in scores:
            run.sequence.score(run.first, found)
        for sequence in [piece.sequence for piece in pass_.choosing]:
            self._deliver(sequence, outcomes[sequence.sampler])
        for sequence in [piece.sequence for piece in pass_.pieces if not piece.logit_rows]:
            sequence.end_without_answer()
        self.admission.end_pass(finished=True)
        self._embedding.may_load()

    async def _outcomes(self, pass_: GenerationPass) -> Mapping[Sampler, Outcome]:
        try:
            await pass_.embedded.wait()
        except Exception as error:
            raise embedding_failed(error) from error
        if pass_.choosing:
            # A measurement may compute some of the groups alone, and not the one halfway; and a pass that is ahead has
            # to wait for the tokens of the one before.
            rows = pass_.rows or self._sampler.send(pass_.last_rows)
            return await self._sampler.choose(COMPUTE, self._buffers.logits_memory, rows, pass_.last)
        await pass_.last.wait()
        return {}

    def _deliver(self, sequence: RunningSequence, outcome: Outcome) -> None:
        """Hand the chosen token to its sequence. A request whose token could not be chosen ends alone."""
        if isinstance(outcome, RequestError):
            sequence.fail(outcome)
        elif not sequence.ended:
            self.tokens += 1
            sequence.accept(outcome)

    async def close(self) -> None:
        """End the threads; the lines must have stopped."""
        self.admission.close()
        await asyncio.to_thread(self._sampler.close)

    def let_go(self) -> None:
        """Hold no views of memory any more, which would outlive that: a closed model may be kept."""
        del self._sampler, self._inputs, self._scorer, self._head, self._work, self._buffers
        self._embedding.let_go()
