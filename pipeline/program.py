"""One pass: choose what to compute, compute it group by group, sample, deliver the token."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from actors.core.budget import Slot
from actors.core.errors import ActorFailed
from actors.core.message import READY, Message
from actors.core.ports import Event
from pipeline.devices import AnyDevice
from pipeline.devices.lane import Lane
from pipeline.errors import RequestError
from pipeline.models import decoder
from pipeline.models.config import ModelConfig
from pipeline.models.ops import Rotary, rotary
from pipeline.sequences.kv import KeyValueCache
from pipeline.sequences.sequence import RunningSequence
from pipeline.weights.catalog import WeightCatalog
from pipeline.weights.embedding import EmbeddingRows
from pipeline.weights.layout import Copy

COMPUTE = "compute"


@dataclass(slots=True)
class GenerationPass:
    """The state of one pass over one sequence: T tokens, of which the first has position `start`.

    The tensors are written and read on the compute lane only; `last` is the event of the latest step.
    """

    sequence: RunningSequence
    start: int
    tokens: int
    samples: bool
    embedded: Event = READY
    last: Event = READY
    rotary: Rotary = field(init=False)
    hidden_TD: torch.Tensor = field(init=False)
    normed_TD: torch.Tensor = field(init=False)
    head_rows: int = 0


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
    ) -> None:
        self.groups_per_pass = len(catalog.order)
        self.passes = 0
        self.tokens = 0
        self._config = config
        self._catalog = catalog
        self._device = device
        self._embedding = embedding
        self._cache = cache
        self._dtype = dtype
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
        pass_ = GenerationPass(sequence, sequence.cached_tokens, len(token_ids), samples)
        try:
            rows = await self._embedding.fetch(token_ids)
        except Exception as error:
            raise _embedding_failed(error) from error
        pass_.embedded = self._launch(pass_, lambda: self._embed(pass_), rows)
        return pass_

    def step(self, pass_: GenerationPass, message: Message[Slot]) -> Event:
        """Launch half a layer or a slice of the head; a group that nobody needs any more is freed uncomputed."""
        is_head = message.group.startswith("head")
        if pass_.sequence.ended or (is_head and not pass_.samples):
            return message.event
        half = self._head if is_head else self._attention if message.group == "attn" else self._ffn
        return self._launch(pass_, lambda: half(pass_, message), message.event)

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

    def _launch(self, pass_: GenerationPass, work: Callable[[], object], arrived: Event) -> Event:
        """Run `work` after what came before in this pass, so that its failure is not computed with."""
        pass_.last = self._device.launch(COMPUTE, torch.inference_mode()(work), (arrived, pass_.last))
        return pass_.last

    def _embed(self, pass_: GenerationPass) -> None:
        pass_.hidden_TD = self._embedding.rows(pass_.tokens).to(self._dtype, copy=True)
        pass_.rotary = rotary(self._config, pass_.start, pass_.tokens, self._device.torch_device)

    def _attention(self, pass_: GenerationPass, message: Message[Slot]) -> None:
        weights, kv = self._catalog.tensors(message), self._cache.layer(message.layer)
        pass_.hidden_TD = decoder.attention_half(self._config, weights, pass_.hidden_TD, kv, pass_.start, pass_.rotary)

    def _ffn(self, pass_: GenerationPass, message: Message[Slot]) -> None:
        pass_.hidden_TD = decoder.ffn_half(self._config, self._catalog.tensors(message), pass_.hidden_TD)

    def _head(self, pass_: GenerationPass, message: Message[Slot]) -> None:
        weights = self._catalog.tensors(message)
        if message.group == "head.0":
            pass_.normed_TD = decoder.final_norm(self._config, weights, pass_.hidden_TD[-1:])
        logits_TV = decoder.output_slice(weights, pass_.normed_TD)
        logits_V = self._logits.tensor.view(torch.float32)
        logits_V[pass_.head_rows : pass_.head_rows + logits_TV.shape[1]] = logits_TV[0]
        pass_.head_rows += logits_TV.shape[1]


def _embedding_failed(error: Exception) -> ActorFailed:
    return error if isinstance(error, ActorFailed) else ActorFailed("compute_scheduler", -1, "embed", error)
