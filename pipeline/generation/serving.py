"""Who is served: requests come, wait for their turn, get their tokens, and leave."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import torch

from pipeline.devices.lane import Lane
from pipeline.errors import ClosedError, RequestError
from pipeline.generation.batching import Batcher, Piece
from pipeline.generation.sampling import Choice
from pipeline.generation.sequence import RunningSequence
from pipeline.state.kv import KeyValueCache
from pipeline.system.limits import reached_limit
from pipeline.system.threads import outlast
from pipeline.text.tokenizing import Tokenizing


class Serving:
    """The half of the program that callers see. `tokenizing_calls` do not wait yet: prompts become ids."""

    def __init__(self, batcher: Batcher, cache: KeyValueCache) -> None:
        self.batcher = batcher
        self.tokens = 0
        self.tokenizing_calls = 0
        self._cache = cache
        self._wanted = asyncio.Event()
        self._left = asyncio.Event()
        self._sampling = Lane("sampling")
        self._tokenizing = Tokenizing()
        self._closed = False
        self._in_pass = False
        self._begun = False
        self._interrupted = False
        cache.lose = batcher.pool.lose

    async def sequences(
        self, make: Callable[[Tokenizing], Coroutine[Any, Any, list[RunningSequence]]]
    ) -> list[RunningSequence]:
        """What `make` makes of a call, to be submitted at once; from now on `drained` waits for it.

        Raises Busy where too many have come before.
        """
        self.batcher.check_room(self.tokenizing_calls + 1)
        self.tokenizing_calls += 1
        try:
            sequences = await make(self._tokenizing)
        finally:
            self.tokenizing_calls -= 1
            self._left.set()
        if self._closed:
            raise _closed()
        return sequences

    def submit(self, sequences: Sequence[RunningSequence]) -> None:
        """Let the samples of a call wait for their turn. Raises Busy, and none waits, where there are too many."""
        self.batcher.check_room(len(sequences))
        for sequence in sequences:
            self.batcher.submit(sequence)
        self._wanted.set()

    def withdraw(self, sequence: RunningSequence) -> None:
        """End a sequence whose caller has gone. What it held is free at once, or when the pass that it is in ends."""
        sequence.cancel()
        self._leave()

    def resume(self) -> None:
        """Take note that somebody has read from a stream: its request may have paused."""
        self._wanted.set()

    def fail(self, error: BaseException) -> None:
        """End everything that waits or runs; every caller gets the error, an object of its own."""
        self.batcher.fail(error)
        self._leave()

    def fail_those_that_run(self, error: BaseException) -> None:
        """Tell those whose turn has come; those that wait keep their places."""
        self.batcher.fail(error, those_that_run=True)

    def interrupt(self, error: BaseException) -> None:
        """Let those that ran be computed anew, when the line has stopped after an error; the others keep their places.

        Once: when no pass has finished since the last time, those that run are told (rule 7); or all, where the line
        has not even come to beginning a pass.
        """
        if self._interrupted:
            self.batcher.fail(error, those_that_run=self._begun)
        self.stopped()
        self._interrupted = self.batcher.unfinished

    def stopped(self) -> None:
        """Take everything back, when the line has stopped, and forget the pass that was under way."""
        self._in_pass = self._begun = self._interrupted = False
        self._cache.fail()
        self.batcher.restart()
        self._left.set()

    def refuse(self, error: ClosedError) -> None:
        """End all requests, those too whose prompt is still tokenised: nobody is served any more."""
        self._closed = True
        self._tokenizing.close(lambda: ClosedError(str(error)))
        self.fail(error)

    async def wanted(self) -> None:
        """Wait until somebody wants tokens."""
        while not self.batcher.wanted:
            self._wanted.clear()
            await self._wanted.wait()

    async def drained(self) -> None:
        """Wait until all requests have ended; none pauses any more, so they end though nobody reads their streams."""
        while self.tokenizing_calls or self.batcher.unfinished:
            self.batcher.pause_nobody()
            self._wanted.set()
            self._left.clear()
            await self._left.wait()

    async def close(self) -> None:
        """End the threads, after `refuse`."""
        self._tokenizing.close(_closed)
        await asyncio.to_thread(self._sampling.close)

    async def _next_pieces(self, max_tokens: int) -> list[Piece]:
        """Wait until somebody can go on, and choose who shares the next pass."""
        while not (pieces := self.batcher.next_pass(max_tokens)):
            self._wanted.clear()
            await self._wanted.wait()
        self._in_pass = self._begun = True
        return pieces

    async def _deliver(self, sequences: Sequence[RunningSequence], logits_RV: torch.Tensor) -> None:
        """Choose the next tokens, row by row, on the sampling thread. A request whose token cannot be ends alone."""
        choices: list[Choice | RequestError] = []
        rows = [(sequence, logits_V) for sequence, logits_V in zip(sequences, logits_RV, strict=False)]
        chosen = self._sampling.submit(lambda: choices.extend(_choose(*row) for row in rows), ())
        try:
            await outlast([asyncio.wrap_future(chosen.future)])
        finally:
            # Though the line be stopped meanwhile: a sampler that has drawn would not draw the same once more.
            for sequence, choice in zip(sequences, choices, strict=False):
                if isinstance(choice, RequestError):
                    sequence.fail(choice)
                elif not sequence.ended:
                    self.tokens += 1
                    sequence.accept(choice)

    def _end_pass(self) -> None:
        self._in_pass = False
        self._leave()

    def _leave(self) -> None:
        """Let those go that have ended, when no pass runs that they may be in."""
        if not self._in_pass:
            self.batcher.retire()
        self._left.set()
        if self.batcher.wanted:  # somebody may have room now
            self._wanted.set()


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
    except BaseException as error:  # on a thread of our own nobody means to end the process by it
        told = reached_limit(error) or error
        return RequestError(f"choosing a token failed: {type(told).__name__}: {told}")
