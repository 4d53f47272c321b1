"""Which requests are served: they come, wait for their turn, run, and leave. What a pass does with them is elsewhere.

Callers submit and withdraw; the supervisor fails, refuses and drains; the program asks for the pieces of the next pass.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from pipeline.errors import ClosedError
from pipeline.generation.batching import Batcher, Piece
from pipeline.generation.parameters import SamplingParameters
from pipeline.generation.pass_size import PassRate
from pipeline.generation.sequence import RunningSequence
from pipeline.text.tokenizing import Tokenizing

Result = TypeVar("Result")
QUIET_SECONDS, QUIET_TURNS = 0.0001, 2
"""After so many turns of the event loop that are shorter than this, no more requests come: to take one in takes several
times as long."""
MOST_GATHERING_SECONDS = 0.05
"""In which some hundred requests come over HTTP; a program may also keep the loop busy with something else."""


class InPass(Protocol):
    """What takes part in passes, as the caches of all lines do."""

    def fail(self) -> None:
        """Forget the pass that was under way; the lines have stopped."""


class Admission:
    """All requests of an open model. `tokenizing_calls` counts the calls whose prompts still become ids.

    What is `in_passes` is told when the lines have stopped.
    """

    def __init__(self, batcher: Batcher, rate: PassRate, in_passes: Sequence[InPass] = ()) -> None:
        self.batcher = batcher
        self.tokenizing_calls = 0
        self.in_pass = False
        self._in_passes = in_passes
        self._rate = rate
        self._prompts: list[Piece] = []
        self._pass_began = 0.0
        self._wanted = asyncio.Event()
        self._left = asyncio.Event()
        self._tokenizing = Tokenizing()
        self._closed = False
        self._begun = False
        self._interrupted = False
        self._is_ahead = False

    def check(self, parameters: SamplingParameters) -> None:
        """Raise RequestError for parameters that can never be served: there are none where the lines run here."""

    async def tokenized(self, make: Callable[[Tokenizing], Coroutine[Any, Any, Result]]) -> Result:
        """What `make` makes of a call, sequences to be submitted at once; from now on `drained` waits for it.

        Raises Busy where too many have come before.
        """
        self.batcher.check_room(self.tokenizing_calls + 1)
        self.tokenizing_calls += 1
        try:
            made = await make(self._tokenizing)
        finally:
            self.tokenizing_calls -= 1
            self._left.set()
        if self._closed:
            raise _closed()
        return made

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
        """Take note that a caller has read from a stream, whose request may have paused, or that room has come."""
        self._wanted.set()

    async def wanted(self) -> None:
        """Wait until a request wants tokens."""
        while not self.batcher.wanted:
            self._wanted.clear()
            await self._wanted.wait()

    async def _gathered(self) -> None:
        """Wait for a first request, and until no more come with it, so that calls that come at once share a pass.

        Otherwise the first would have a pass of its own, for whose end all others would wait.
        """
        await self.wanted()
        first = now = time.perf_counter()
        quiet = 0
        while quiet < QUIET_TURNS and now - first < MOST_GATHERING_SECONDS:
            await asyncio.sleep(0)
            before, now = now, time.perf_counter()
            quiet = quiet + 1 if now - before < QUIET_SECONDS else 0

    async def next_pieces(self, max_tokens: int) -> list[Piece]:
        """Wait until a request can go on, and choose which of them share the next pass."""
        if not self.batcher.running:
            await self._gathered()
        while not (pieces := self.batcher.next_pass(max_tokens, self._rate.most_tokens)):
            self._wanted.clear()
            await self._wanted.wait()
        self.in_pass = self._begun = True
        self._prompts = [piece for piece in pieces if not piece.sequence.answers]
        self._pass_began = asyncio.get_running_loop().time()
        return pieces

    def pieces_ahead(self, pieces: Sequence[Piece]) -> list[Piece]:
        """Those of a pass that begins now, behind the launched one with `pieces`; [] where it has to wait for that."""
        ahead = [] if self.tokenizing_calls else self.batcher.next_ahead(pieces)
        self._is_ahead = bool(ahead)
        return ahead

    def end_pass(self, *, finished: bool) -> None:
        """Let those leave that have ended, and others come. A pass that has not `finished` computed nothing."""
        self.in_pass, self._is_ahead = self._is_ahead, False
        if finished:
            self._take_note()
        if self.in_pass:
            self._prompts, self._pass_began = [], asyncio.get_running_loop().time()
        self._interrupted = self._interrupted and not finished
        self._leave()

    def _take_note(self) -> None:
        """Learn from a pass how long tokens of prompts take; nothing, where it may have skipped some of them."""
        if not any(piece.sequence.state in ("cancelled", "failed") for piece in self._prompts):
            seconds = asyncio.get_running_loop().time() - self._pass_began
            self._rate.took(sum(len(piece.token_ids) for piece in self._prompts), seconds)

    def fail(self, error: BaseException) -> None:
        """End everything that waits or runs; every caller gets the error, an object of its own."""
        self.batcher.fail(error)
        self._leave()

    def fail_those_that_run(self, error: BaseException) -> None:
        """End the requests whose turn has come; those that wait keep their places."""
        self.batcher.fail(error, those_that_run=True)

    def interrupt(self, error: BaseException) -> None:
        """Let those that ran be computed anew, when the line has stopped after an error; the others keep their places.

        Once: when no pass has finished since the last time, those that run get the error (rule 7); or all, where the
        line has not even come to beginning a pass.
        """
        if self._interrupted:
            self.batcher.fail(error, those_that_run=self._begun)
        self.stopped()
        self._interrupted = self.batcher.unfinished

    def stopped(self) -> None:
        """Take everything back, when the line has stopped, and forget the pass that was under way."""
        self.in_pass = self._begun = self._interrupted = self._is_ahead = False
        for one in self._in_passes:
            one.fail()
        self.batcher.restart()
        self._left.set()

    def refuse(self, error: ClosedError) -> None:
        """End all requests, those too whose prompt is still tokenised, and serve no more."""
        self._closed = True
        self._tokenizing.close(lambda: ClosedError(str(error)))
        self.fail(error)

    async def drained(self) -> None:
        """Wait until all requests have ended; none pauses any more, so they end though their streams are not read."""
        while self.tokenizing_calls or self.batcher.unfinished:
            self.batcher.never_pause()
            self._wanted.set()
            self._left.clear()
            await self._left.wait()

    def close(self) -> None:
        """End the threads, after `refuse`."""
        self._tokenizing.close(_closed)

    def _leave(self) -> None:
        """Let those go that have ended, when no pass runs that they may be in."""
        if not self.in_pass:
            self.batcher.retire()
        self._left.set()
        if self.batcher.wanted:  # there may be room for one that waits
            self._wanted.set()


def _closed() -> ClosedError:
    return ClosedError("the model was closed before the request had begun")
