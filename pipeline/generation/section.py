"""What one line computes of a pass: its groups, on its device, half a layer or a slice of the head at a time."""

import functools
from collections.abc import Callable, Collection, Coroutine, Hashable, Sequence
from typing import Any, ClassVar

import torch

from actors.core.budget import Slot
from actors.core.event import Event
from actors.core.message import READY, GroupKey, Message, ended
from actors.core.order import lanes
from actors.core.ports import Program
from pipeline.devices.port import Device
from pipeline.formats.parts import ATTN, FFN, HEAD, attends, gives_logits, kind_of
from pipeline.generation.batching import Piece
from pipeline.generation.expert_half import ExpertHalf
from pipeline.generation.fetched_rows import fetch_rows
from pipeline.generation.generation_pass import GenerationPass, token_ids
from pipeline.generation.head import Head
from pipeline.generation.launches import HalfWork
from pipeline.generation.micro_batches import MicroBatch, micro_batches
from pipeline.generation.pass_buffers import PassBuffers
from pipeline.generation.pass_inputs import PassInputs
from pipeline.generation.pass_work import PassWork
from pipeline.generation.records import Records
from pipeline.generation.whole import Arrived, Passes
from pipeline.groups.catalog import WeightCatalog
from pipeline.models.model_config import ModelConfig
from pipeline.models.ops import infer
from pipeline.models.row_blocks import RowBlocks
from pipeline.reading.embedding import EmbeddingRows
from pipeline.state.kv import KeyValueCache

COMPUTE = "compute"
"""The compute lane; with several micro-batches each part of a layer has a lane of its own."""


class Section(Program):
    """The program of one line: it computes passes that the whole, `passes`, begins and finishes.

    Of several sections, that of the first layer has the `embedding`, and one has the `head`.
    """

    passes: "Passes[Section]"
    number = 0
    alone = True

    def __init__(
        self,
        config: ModelConfig,
        catalog: WeightCatalog,
        device: Device,
        embedding: EmbeddingRows | None,
        cache: KeyValueCache,
        inputs: PassInputs,
        dtype: torch.dtype,
        row_blocks: RowBlocks,
        buffers: PassBuffers,
        head: Head | None,
        micro_batches: int = 1,
        expert_half: ExpertHalf | None = None,
    ) -> None:
        self.order: Sequence[GroupKey] = catalog.order
        self.apart = frozenset(key for key in self.order if expert_half is not None and expert_half.computes(key))
        self.embedding = embedding
        self.head = head
        self.expert_half = expert_half
        self._lanes = lanes(self.order)
        self._halfway = self.order[(len(self.order) - 1) // 2]
        self._device = device
        self._cache = cache
        self._inputs = inputs
        self._row_blocks = row_blocks
        self._buffers = buffers
        self._work = PassWork(config, catalog, cache, embedding, inputs, dtype, row_blocks, buffers, head)
        self._micro_batches = micro_batches
        self._records = Records(device, len(catalog.order), micro_batches)

    def join(self, passes: "Passes[Section]", number: int, hops: Collection[GroupKey], *, alone: bool) -> None:
        """Take part in the passes of the whole, as the section of this number; `alone` if it is the only one."""
        self.passes, self.number, self.hops, self.alone = passes, number, hops, alone

    async def begin(self) -> GenerationPass:
        """Wait until the whole begins a pass."""
        return await self.passes.begin(self)

    def ahead(self, pass_: GenerationPass) -> GenerationPass | None:
        """Begin the next pass behind the launches of this one, where the whole can."""
        return self.passes.ahead(self, pass_)

    async def finish(self, pass_: GenerationPass) -> None:
        """Let the whole wait for the results."""
        await self.passes.finish(self, pass_)
        if self.expert_half is not None:
            self.expert_half.end()

    async def fetch(self, pieces: list[Piece]) -> tuple[list[Piece], Event]:
        """Fetch the embedding rows of these pieces, where the section has the embedding; see `fetch_rows`."""
        if self.embedding is None:
            return pieces, READY
        return await fetch_rows(self.embedding, pieces, self._work.embeds_alike)

    def start(self, pieces: list[Piece], fetched: Event = READY) -> GenerationPass:
        """Launch what comes before the layers of a pass with these pieces, whose embedding rows are `fetched`."""
        self._cache.begin(pieces)
        tokens, embeds_alike = len(token_ids(pieces)), self._work.embeds_alike(pieces)
        pass_ = GenerationPass(pieces, micro_batches(tokens, self._micro_batches, self._row_blocks))
        if self.expert_half is not None:
            self.expert_half.begin(pieces, pass_.padded_rows)
        if self.head is not None:
            self.head.begin(pass_)
        sent = self._inputs.send(pieces, pass_.cuts, upload=not embeds_alike)
        embed, repeats = functools.partial(self._work.embed, pass_, tokens), None
        if embeds_alike:
            embed, repeats = functools.partial(self._work.copy_and_embed, pass_), ("embed", pass_.padded_rows)
        self._embed(pass_, embed, (fetched, sent), repeats)
        return pass_

    def may_go_on(self, pass_: GenerationPass, head: Head) -> bool:
        """Whether the device alone can begin the next pass, with the tokens that its `head` chooses in this one."""
        if pass_.in_stretches < len(self.order) or pass_.abandoned:
            return False
        if self.embedding is None or not self.embedding.is_seen or not self._work.embeds_alike(pass_.pieces):
            return False
        rows = head.send(pass_)
        return rows.prepared.done() and rows.goes_on and len(rows.samplers) == len(pass_.pieces)

    def go_on(self, pass_: GenerationPass, head: Head, pieces: list[Piece]) -> GenerationPass:
        """Launch the choice of tokens, and behind it what comes before the first layer of the next pass."""
        rows = head.launch(COMPUTE, pass_)
        parts = micro_batches(len(pieces), self._micro_batches, self._row_blocks)
        following = GenerationPass(pieces, parts, ahead=True)
        self._inputs.go_on(pieces, following.cuts)
        go_on = functools.partial(self._work.go_on, following, head.sampler)
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

    async def arrive(self, pass_: GenerationPass, message: Message[Slot]) -> None:
        """Wait until the pass has come from another section, and launch the copy of its hidden states behind theirs."""
        arrived = await self.passes.arrive(self, pass_, message)
        if pass_.abandoned:
            return
        lane = self._lane(pass_, message)
        for part, hidden_TD, event in zip(pass_.parts, arrived.hidden, arrived.events, strict=True):
            work = functools.partial(self._work.take_over, hidden_TD, part)
            # From one GPU to another it is one launch; from host memory it may wait for the copy.
            short = hidden_TD.device.type != "cpu"
            part.last = self._device.launch(lane, functools.partial(infer, work), (event, part.last), short=short)

    def handed_on(self, pass_: GenerationPass) -> Arrived:
        """The hidden states behind what was launched last, where they lie until the pass comes back."""
        hidden = [self._buffers.hidden(part.begin, part.end) for part in pass_.parts]
        return Arrived(hidden, [part.last for part in pass_.parts])

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
        if not self.alone:
            self.passes.left(self, pass_, (message,), ran)
        return ran

    def stretch(self, pass_: GenerationPass, messages: Sequence[Message[Slot]]) -> Sequence[Event]:
        """Launch groups that stay as one, where that repeats: in one micro-batch of a pass that only chooses."""
        sized = len(pass_.parts) == 1 and pass_.padded_rows in self._row_blocks.repeated
        if not sized or not pass_.choosing or pass_.scored is not None or messages[0].key in self.apart:
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
        if not self.alone:
            self.passes.left(self, pass_, messages, [part.last])
        return [part.last]

    def _tell(self, pass_: GenerationPass, message: Message[Slot], ran: Sequence[Event]) -> None:
        """Say what was launched, if anything."""
        if ran and message.key == self._halfway and not pass_.ahead and self.head is not None:
            # While the device is busy, and before weights of the next pass are on their way to it.
            self.head.send(pass_)
        tell = self._cache.attended if attends(message.group) else self._cache.rendezvous.computed
        tell(message.layer, ran[-1] if ran else READY)

    def _launch_attention(self, pass_: GenerationPass, message: Message[Slot]) -> list[Event]:
        kv, arrived = self._cache.layer(message.layer)
        repeats = self._work.attention_repeats(pass_, message.layer)
        half: HalfWork = functools.partial(self._work.attention, message, kv)
        if self.expert_half is not None:
            half, repeats = self.expert_half.with_choice(pass_, message.layer, half, repeats)
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
        half: HalfWork,
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
        lane, key = self._lane(pass_, message), None
        if repeats and pass_.padded_rows in self._row_blocks.repeated:
            key = self._records.admit((message.key, message.at.buffer.tensor.data_ptr(), repeats))
        after = (message.event, *after, part.last)
        part.last = self._device.launch(lane, functools.partial(infer, work), after, key, short=short)
        return part.last

    def _lane(self, pass_: GenerationPass, message: Message[Slot]) -> str:
        return COMPUTE if len(pass_.parts) == 1 else self._lanes[message.key]

    def _launch_head(self, pass_: GenerationPass, message: Message[Slot]) -> list[Event]:
        return [] if self.head is None else self.head.step(pass_, message, self._launch)

    # Bound methods in the instance would be a cycle of references, which holds KV blocks until it is collected.
    _launches: ClassVar = {ATTN: _launch_attention, FFN: _launch_ffn, HEAD: _launch_head}

    async def embedded(self, pass_: GenerationPass) -> None:
        """Wait for what comes before the layers. Raises ActorFailed, which names the embedding where it is here."""
        try:
            await pass_.embedded.wait()
        except Exception as error:
            if self.embedding is None:
                raise
            raise self.embedding.failed(error) from error

    async def close(self) -> None:
        """End the threads; the lines must have stopped."""
        if self.head is not None:
            await self.head.close()
        if self.expert_half is not None:
            await self.expert_half.close()

    def let_go(self) -> None:
        """Hold no views of memory any more, nor the whole, which would outlive that: a closed model may be kept."""
        del self._inputs, self.head, self._work, self._buffers, self.passes
        if self.embedding is not None:
            self.embedding.let_go()
