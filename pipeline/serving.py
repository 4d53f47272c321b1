"""Who is served: requests come, wait for their turn, get their tokens, and leave."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import torch

from pipeline.devices.lane import Lane
from pipeline.errors import ClosedError, RequestError
from pipeline.limits import reached_limit
from pipeline.sequences.batching import Batcher, Piece
from pipeline.sequences.kv import KeyValueCache
from pipeline.sequences.sampling import Choice
from pipeline.sequences.sequence import RunningSequence
from pipeline.text.tokenizing import Tokenizing


class Serving:
    """The half of the program that callers see."""

    def __init__(self, batcher: Batcher, cache: KeyValueCache) -> None:
        self.batcher = batcher
        self.tokens = 0
        self._cache = cache
        self._changed = asyncio.Event()
        self._sampling = Lane("sampling")
        self._tokenizing = Tokenizing()
        self._entering = 0
        self._closed = False
        self._in_pass = False

    async def sequences(
        self, make: Callable[[Tokenizing], Coroutine[Any, Any, list[RunningSequence]]]
    ) -> list[RunningSequence]:
        """What `make` makes of a call, to be submitted at once; from now on `drained` waits for it.

        Raises Busy where too many have come before.
        """
        self.batcher.check_room(self._entering + 1)
        self._entering += 1
        try:
            sequences = await make(self._tokenizing)
        finally:
            self._entering -= 1
            self._changed.set()
        if self._closed:
            raise _closed()
        return sequences

    def submit(self, sequences: Sequence[RunningSequence]) -> None:
        """Let the samples of a call wait for their turn. Raises Busy, and none waits, where there are too many."""
        self.batcher.check_room(len(sequences))
        for sequence in sequences:
            self.batcher.submit(sequence)
        self._changed.set()

    def withdraw(self, sequence: RunningSequence) -> None:
        """End a sequence whose caller has gone. What it held is free at once, or when the pass that it is in ends."""
        sequence.cancel()
        if not self._in_pass:
            self.batcher.retire()
        self._changed.set()

    def resume(self) -> None:
        """Take note that somebody has read from a stream: its request may have paused."""
        self._changed.set()

    def fail(self, error: BaseException) -> None:
        """End everything that waits or runs; every caller gets the error (rule 7). Only when the line has stopped."""
        self._in_pass = False
        self._cache.fail()
        self.batcher.fail(error)
        self._changed.set()

    async def wanted(self) -> None:
        """Wait until somebody wants tokens."""
        while not self.batcher.wanted:
            await self._change()

    async def drained(self) -> None:
        """Wait until all requests have ended; none pauses any more, so they end though nobody reads their streams."""
        while self._entering or self.batcher.unfinished:
            self.batcher.pause_nobody()
            self._changed.set()
            await self._change()

    async def close(self) -> None:
        """End the threads, and the calls whose prompt is tokenised."""
        self._closed = True
        self._tokenizing.close(_closed)
        await asyncio.to_thread(self._sampling.close)

    async def _next_pieces(self, max_tokens: int) -> list[Piece]:
        """Wait until somebody can go on, and choose who shares the next pass."""
        while not (pieces := self.batcher.next_pass(max_tokens)):
            await self._change()
        self._in_pass = True
        return pieces

    async def _deliver(self, sequences: Sequence[RunningSequence], logits_RV: torch.Tensor) -> None:
        """Choose the next tokens, row by row, on the sampling thread. A request whose token cannot be ends alone."""
        choices: list[Choice | RequestError] = []
        rows = [(sequence, logits_V) for sequence, logits_V in zip(sequences, logits_RV, strict=False)]
        await self._sampling.submit(lambda: choices.extend(_choose(*row) for row in rows), ()).wait()
        for sequence, choice in zip(sequences, choices, strict=True):
            if isinstance(choice, RequestError):
                sequence.fail(choice)
            elif not sequence.ended:
                self.tokens += 1
                sequence.accept(choice)

    def _end_pass(self) -> None:
        """Let those go that have ended."""
        self._in_pass = False
        self.batcher.retire()
        self._changed.set()

    async def _change(self) -> None:
        """Wait until something has come, gone or been read."""
        self._changed.clear()
        await self._changed.wait()


def _closed() -> ClosedError:
    return ClosedError("the model was closed before the request had begun")


def _choose(sequence: RunningSequence, logits_V: torch.Tensor) -> Choice | RequestError:
    try:
        choice = sequence.sampler.sample(logits_V)
        if not (isinstance(choice.token_id, int) and 0 <= choice.token_id < len(logits_V)):
            raise RequestError(f"sampler: need a token id from 0 to {len(logits_V) - 1}, have {choice.token_id!r}")
        return choice
    except RequestError as error:
        return error
    except Exception as error:
        told = reached_limit(error) or error
        return RequestError(f"choosing a token failed: {type(told).__name__}: {told}")
