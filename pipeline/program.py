"""One pass: choose what to compute, compute it group by group, sample, deliver the token."""

import asyncio
import functools
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from actors.core.budget import Slot
from actors.core.errors import ActorFailed
from actors.core.message import READY, Message, ended
from actors.core.ports import Event
from pipeline.devices.lane import Lane
from pipeline.devices.open import AnyDevice
from pipeline.errors import RequestError
from pipeline.models import decoder
from pipeline.models.config import ModelConfig
from pipeline.models.ops import Rotary, rotary
from pipeline.sequences.kv import KeyValueCache
from pipeline.sequences.sequence import RunningSequence
from pipeline.weights.catalog import WeightCatalog
from pipeline.weights.embedding import EmbeddingRows
from pipeline.weights.layout import Copy

COMPUTE, ATTN, FFN = "compute", "attn", "ffn"
"""Compute lanes: one for everything, or, with several micro-batches, one for each kind of half."""


@dataclass(slots=True)
class MicroBatch:
    """Rows [begin, end) of a pass; `last` is the event of its latest half. Its first token has position `start`."""

    begin: int
    end: int
    start: int
    last: Event = READY
    rotary: Rotary = field(init=False)


@dataclass(slots=True)
class GenerationPass:
    """The state of one pass over T tokens of one sequence, of which the first has position `start`.

    `hidden_TD` is made once and then written in place: a micro-batch goes from lane to lane, and memory that one CUDA
    stream frees while another still reads it would be handed out again too early.
    """

    sequence: RunningSequence
    start: int
    tokens: int
    samples: bool
    parts: list[MicroBatch]
    embedded: Event = READY
    hidden_TD: torch.Tensor = field(init=False)
    normed_TD: torch.Tensor = field(init=False)
    head_rows: int = 0

    @property
    def last(self) -> Event:
        """The event of the latest step of the last micro-batch, which attends to all before it."""
        return self.parts[-1].last


class GenerationProgram:
    """Serves waiting sequences first come, first served, one at a time."""

    def __init__(
        self,
        config: ModelConfig,
        catalog: WeightCatalog,
        device: AnyDevice,
        embedding: EmbeddingRows,
        cache: KeyValueCache,
        dtype: torch.dtype,
        micro_batches: int = 1,
    ) -> None:
        self.order = catalog.order
        self.passes = 0
        self.tokens = 0
        self._config = config
        self._catalog = catalog
        self._device = device
        self._embedding = embedding
        self._cache = cache
        self._dtype = dtype
        self._micro_batches = micro_batches
        self._last_group = catalog.order[-1]
        self._waiting: deque[RunningSequence] = deque()
        self._arrived = asyncio.Event()
        self._sampling = Lane("sampling")
        logits_bytes = config.vocabulary_size * torch.float32.itemsize
        self._logits_copy = (Copy(0, 0, logits_bytes),)
        self._logits = device.device_memory(logits_bytes)
        self._host_logits = device.host_memory(logits_bytes)

    def submit(self, sequence: RunningSequence) -> None:
        """Let a sequence wait for its turn."""
        self._waiting.append(sequence)
        self._arrived.set()

    def withdraw(self, sequence: RunningSequence) -> None:
        """End a sequence whose caller has gone; a pass over it stops computing at the next group."""
        sequence.ended = True
        if sequence in self._waiting:
            self._waiting.remove(sequence)

    def fail(self, error: BaseException) -> None:
        """End everything that waits or runs; every caller gets the error (rule 7)."""
        while self._waiting:
            self._waiting.popleft().fail(error)

    async def wanted(self) -> None:
        """Wait until a sequence waits."""
        while not self._front():
            self._arrived.clear()
            await self._arrived.wait()

    async def close(self) -> None:
        """End the sampling thread."""
        await asyncio.to_thread(self._sampling.close)

    async def begin(self) -> GenerationPass:
        """Wait for a sequence, and fetch the embedding rows of the tokens that it wants computed."""
        await self.wanted()
        sequence = self._waiting[0]
        token_ids = sequence.waiting_tokens(self._embedding.most_rows)
        samples = len(token_ids) == sequence.waiting_count
        parts = _micro_batches(sequence.cached_tokens, len(token_ids), self._micro_batches)
        pass_ = GenerationPass(sequence, sequence.cached_tokens, len(token_ids), samples, parts)
        try:
            rows = await self._embedding.fetch(token_ids)
        except Exception as error:
            raise _embedding_failed(error) from error
        work = torch.inference_mode()(lambda: self._embed(pass_))
        pass_.embedded = self._device.launch(COMPUTE, work, (rows,))
        for part in parts:
            part.last = pass_.embedded
        return pass_

    async def check_in(self, pass_: GenerationPass, message: Message[Slot]) -> None:
        """Wait, on the host, for everything that was launched and for the group."""
        for part in pass_.parts:
            await ended(part.last)
        await ended(message.event)

    def step(self, pass_: GenerationPass, message: Message[Slot]) -> Sequence[Event]:
        """Launch half a layer, micro-batch by micro-batch, or a slice of the head; nothing if nobody needs it."""
        is_head = message.group.startswith("head")
        if pass_.sequence.ended or (is_head and not pass_.samples):
            return ()
        if is_head:
            return [self._launch(FFN, pass_, pass_.parts[-1], lambda: self._head(pass_, message), message.event)]
        half = self._attention if message.group == "attn" else self._ffn
        ran: list[Event] = []
        for part in pass_.parts:
            # Behind the micro-batch before, whose lane it shares: it attends to that one's keys, and fails with it.
            arrived = (message.event, *ran[-1:])
            ran.append(
                self._launch(message.group, pass_, part, functools.partial(half, pass_, part, message), *arrived)
            )
        return ran

    async def finish(self, pass_: GenerationPass) -> None:
        """Wait for the pass, choose the next token from its logits, and deliver it."""
        self.passes += 1
        sequence = pass_.sequence
        try:
            await pass_.embedded.wait()
        except Exception as error:
            raise _embedding_failed(error) from error
        if not pass_.samples or sequence.ended:
            await pass_.last.wait()
        else:
            downloaded = self._device.download(self._logits, self._host_logits, self._logits_copy, (pass_.last,))
            await downloaded.wait()
        sequence.cached_tokens += pass_.tokens
        if pass_.samples and not sequence.ended:
            logits_V = self._host_logits.tensor.view(torch.float32)
            await self._sample(sequence, logits_V)

    async def _sample(self, sequence: RunningSequence, logits_V: torch.Tensor) -> None:
        chosen = []
        event = self._sampling.submit(lambda: chosen.append(sequence.sampler.sample(logits_V)), ())
        try:
            await event.wait()
        except RequestError as error:
            sequence.fail(error)
        except Exception as error:
            sequence.fail(RequestError(f"choosing a token failed: {type(error).__name__}: {error}"))
        else:
            self.tokens += 1
            sequence.accept(chosen[0])

    def _front(self) -> RunningSequence | None:
        while self._waiting and self._waiting[0].ended:
            self._waiting.popleft()
        return self._waiting[0] if self._waiting else None

    def _launch(
        self, lane: str, pass_: GenerationPass, part: MicroBatch, work: Callable[[], object], *arrived: Event
    ) -> Event:
        """Run `work` after what came before in this micro-batch, so that its failure is not computed with."""
        lane = COMPUTE if len(pass_.parts) == 1 else lane
        part.last = self._device.launch(lane, torch.inference_mode()(work), (*arrived, part.last))
        return part.last

    def _embed(self, pass_: GenerationPass) -> None:
        pass_.hidden_TD = self._embedding.rows(pass_.tokens).to(self._dtype, copy=True)
        for part in pass_.parts:
            part.rotary = rotary(self._config, part.start, part.end - part.begin, self._device.torch_device)

    def _attention(self, pass_: GenerationPass, part: MicroBatch, message: Message[Slot]) -> None:
        weights, kv = self._catalog.tensors(message), self._cache.layer(message.layer)
        hidden_TD = pass_.hidden_TD[part.begin : part.end]
        hidden_TD.copy_(decoder.attention_half(self._config, weights, hidden_TD, kv, part.start, part.rotary))

    def _ffn(self, pass_: GenerationPass, part: MicroBatch, message: Message[Slot]) -> None:
        hidden_TD = pass_.hidden_TD[part.begin : part.end]
        hidden_TD.copy_(decoder.ffn_half(self._config, self._catalog.tensors(message), hidden_TD))

    def _head(self, pass_: GenerationPass, message: Message[Slot]) -> None:
        weights = self._catalog.tensors(message)
        if message.group == "head.0":
            pass_.normed_TD = decoder.final_norm(self._config, weights, pass_.hidden_TD[-1:])
        logits_TV = decoder.output_slice(weights, pass_.normed_TD)
        logits_V = self._logits.tensor.view(torch.float32)
        logits_V[pass_.head_rows : pass_.head_rows + logits_TV.shape[1]] = logits_TV[0]
        pass_.head_rows += logits_TV.shape[1]


def _micro_batches(start: int, tokens: int, most: int) -> list[MicroBatch]:
    """Cut the tokens of a pass into `most` runs of about the same length; one token makes one."""
    count = min(most, tokens)
    cuts = [tokens * index // count for index in range(count + 1)]
    return [MicroBatch(begin, end, start + begin) for begin, end in itertools.pairwise(cuts)]


def _embedding_failed(error: Exception) -> ActorFailed:
    return error if isinstance(error, ActorFailed) else ActorFailed("compute_scheduler", -1, "embed", error)
