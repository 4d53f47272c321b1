"""Which requests share the next pass, and how many tokens each brings."""

import bisect
import functools
import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from pipeline.errors import Busy, RequestError, for_one_caller
from pipeline.generation.sequence import RunningSequence
from pipeline.generation.shortages import Shortages
from pipeline.state.blocks import BLOCK_TOKENS, BlockPool, blocks_for
from pipeline.state.prefix_cache import PrefixCache
from pipeline.state.state_slots import StateSlots


@dataclass(frozen=True, slots=True)
class Piece:
    """What one sequence brings to a pass: `token_ids` at positions from `start` on.

    The pass computes logits for the last `logit_rows` of them. All are rotated by the frequencies of `rope_length`, as
    what is cached of the sequence was. Recurrent layers begin with the state in the slot `state_read`, with zeros where
    it is -1, and leave that behind the last token in `state_write`; that behind the token with this index goes to
    another slot for each (index, slot) of `snapshots`.
    """

    sequence: RunningSequence
    start: int
    token_ids: tuple[int, ...]
    logit_rows: int
    rope_length: int = 0
    state_read: int = -1
    state_write: int = -1
    snapshots: tuple[tuple[int, int], ...] = ()


UNKNOWN = (-1,)
"""The token of a piece whose pass begins before the host knows it."""


def most_logit_rows(max_requests: int) -> int:
    """How many rows of logits a pass has room for: one for each request that it may carry."""
    return max_requests


class Batcher:
    """Requests that wait for room, and those that run. Requests join and leave between two passes only.

    A request is admitted, in the order of priority and then of arrival, when there is room for the blocks of its worst
    case, and for its recurrent state where a model has one; none overtakes one that does not fit. One that has paused
    keeps its blocks, and takes no part in passes.
    `ended` counts by state those that have left.
    """

    def __init__(
        self,
        pool: BlockPool,
        max_requests: int,
        max_waiting: int = 4096,
        states: StateSlots | None = None,
        *,
        share_answers: bool = True,
    ) -> None:
        self.pool = pool
        self.states = states
        self.prefixes = PrefixCache(pool, states, share_answers=share_answers)
        self.max_requests = max_requests
        self.max_waiting = max_waiting
        self._waiting: list[RunningSequence] = []
        self._running: deque[RunningSequence] = deque()
        self.ended: Counter[str] = Counter()
        self.shortages = Shortages()

    @property
    def wanted(self) -> bool:
        """Whether a request is active: it has neither ended nor paused."""
        return any(sequence.active for sequence in self.sequences)

    @property
    def unfinished(self) -> bool:
        """Whether a request has not ended; a paused one counts."""
        return any(not sequence.ended for sequence in self.sequences)

    @property
    def sequences(self) -> Iterator[RunningSequence]:
        """All requests: those that run, then those that wait."""
        return itertools.chain(self._running, self._waiting)

    @property
    def waiting(self) -> int:
        """Requests that have not been admitted yet."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that hold KV blocks."""
        return len(self._running)

    @property
    def paused(self) -> int:
        """Requests, running or waiting, that go on only when their streams are read."""
        return sum(sequence.paused for sequence in self.sequences)

    def check_room(self, count: int) -> None:
        """Raise Busy where so many more requests could not even wait."""
        if self.running + self.waiting + count > self.max_requests + self.max_waiting:
            raise Busy(
                f"busy: {self.running} requests run, {self.waiting} wait, and {count} that come now are too many for "
                f"max_requests={self.max_requests} and max_waiting={self.max_waiting}: call again when some have "
                "ended, or open the model with a larger max_waiting"
            )

    def submit(self, sequence: RunningSequence) -> None:
        """Let a request wait for its turn; one that has had it before goes first.

        Raises RequestError where it asks for more rows of logits than a pass has room for.
        """
        if sequence.logit_rows > (have := most_logit_rows(self.max_requests)):
            raise RequestError(f"logit_rows: need {sequence.logit_rows}, have {have} with max_requests={have}")
        bisect.insort_right(self._waiting, sequence, key=lambda one: (one.state != "interrupted", one.priority))

    def never_pause(self) -> None:
        """Let all requests go on to their end, though their streams are not read."""
        for sequence in self.sequences:
            sequence.most_unread = None

    def fail(self, error: BaseException, *, those_that_run: bool = False) -> None:
        """End all requests, or those alone whose turn has come, each with an error of its own.

        What they held is free when they are retired.
        """
        for sequence in self.sequences:
            if not those_that_run or (sequence.state != "waiting" and sequence.active):
                sequence.fail(for_one_caller(error))

    def restart(self) -> None:
        """Trust no block any more: those that ran wait for their turn once more, and are computed anew.

        Call it when no pass runs.
        """
        self.retire()
        interrupted = list(self._running)
        self._running.clear()
        for sequence in interrupted:
            self._begin_anew(sequence)
        self.prefixes.forget()

    def computed(self, pieces: Sequence[Piece]) -> None:
        """Count the KV rows of these pieces as written; call it when what they give has been chosen, not delivered yet.

        Rows of sequences that ended meanwhile do not count: the pass may have skipped them, so they may hold anything.
        """
        for piece in pieces:
            if not piece.sequence.ended:
                piece.sequence.cached_tokens += len(piece.token_ids)
                self.prefixes.computed(piece.sequence, piece.start)

    def retire(self) -> None:
        """Let those go that have ended, and take their blocks back; call it when no pass runs."""
        for sequence in [one for one in self.sequences if one.ended]:
            (self._waiting if sequence in self._waiting else self._running).remove(sequence)
            self.prefixes.give_back(sequence)
            sequence.sampler.end()
            self.ended[sequence.state] += 1

    def _begin_anew(self, sequence: RunningSequence) -> None:
        """Take the blocks of a sequence back, which waits for its turn once more."""
        self.prefixes.give_back(sequence)
        sequence.uncache()
        sequence.state = "interrupted"
        self.submit(sequence)

    def _rotate_anew(self) -> None:
        """Let those begin anew that have grown into other rotary frequencies than their cached keys have."""
        for sequence in [one for one in self._running if one.active and one.outgrown]:
            self._running.remove(sequence)
            self._begin_anew(sequence)

    def _admit(self) -> dict[str, Callable[[], str]]:
        """Let requests run for as long as there is room for the next; those held back or paused let others go first.

        Returns the setting because of which the next one waits, if one does.
        """
        rows = sum(max(1, one.logit_rows) for one in self._running)
        for sequence in [one for one in self._waiting if one.active and not one.held_back]:
            rows += max(1, sequence.logit_rows)
            if rows > most_logit_rows(self.max_requests):
                return {"max_requests": self._no_place}
            if self.states is not None and self.states.used == self.states.requests:
                return {"kv_tokens": self._no_state}
            if not self.prefixes.admit(sequence):
                return {"kv_tokens": functools.partial(self._no_room, sequence)}
            if sequence.state == "waiting":
                sequence.found_tokens = sequence.cached_tokens
            sequence.state = "running"
            self._waiting.remove(sequence)
            self._running.append(sequence)
        return {}

    def next_pass(self, max_tokens: int, most_of_prompts: Callable[[bool], int] | None = None) -> list[Piece]:
        """Choose up to `max_tokens` tokens: one of each request that answers, the rest of prompts, which share it.

        `most_of_prompts` says how many tokens those may have beside requests that answer, or where there are none.
        More answering requests than `max_tokens` take turns.
        Call it when no pass runs. Empty where no request is active, or where all active ones wait for room.
        """
        self.retire()
        self._rotate_anew()
        short = self._admit()
        active = [one for one in self._running if one.active]
        answering = [one for one in active if one.answers]
        if (count := len(answering)) > max_tokens:
            short["max_tokens_per_pass"] = functools.partial(_take_turns, count, max_tokens)
        del answering[max_tokens:]
        tokens = dict.fromkeys(answering, 1)
        left = max_tokens - len(answering)
        if most_of_prompts is not None:
            left = min(left, most_of_prompts(bool(answering)))
        prefilling = [one for one in active if not one.answers][:left]
        for index, sequence in enumerate(sorted(prefilling, key=lambda one: one.waiting_count)):
            share = min(sequence.waiting_count, -(-left // (len(prefilling) - index)))
            tokens[sequence] = share
            left -= share
        for sequence in answering:
            self._running.remove(sequence)
            self._running.append(sequence)
        self.shortages.note(short, passes=1 if tokens else 0)
        return [self._piece(sequence, count) for sequence, count in tokens.items() if count]

    def next_ahead(self, pieces: Sequence[Piece]) -> list[Piece]:
        """The pieces of the pass behind one with these, if that has the same sequences whatever tokens come now.

        [] otherwise: where a request waits or pauses, or an answer has not begun, or ends.
        """
        if self._waiting or len(self._running) != len(pieces) or not all(map(_goes_on, pieces)):
            return []
        self.shortages.note({}, passes=1)
        return [replace(piece, start=piece.start + 1, token_ids=UNKNOWN) for piece in pieces]

    def _piece(self, sequence: RunningSequence, count: int) -> Piece:
        logit_rows = min(count, sequence.logit_rows) if count == sequence.waiting_count else 0
        token_ids, held = sequence.waiting_tokens(count), sequence.held_state
        said = (sequence, sequence.cached_tokens, token_ids, logit_rows, sequence.rope_length)
        if held is None:
            return Piece(*said)
        return Piece(*said, held.read, held.own, self.prefixes.snapshots(sequence, count))

    def _no_place(self) -> str:
        first = "the one that runs" if self.running == 1 else f"one of the {self.running} that run"
        return (
            f"{_wait(self.waiting)} until {first} has ended: no more share a pass with "
            f"max_requests={self.max_requests}; open the model with a larger max_requests to let them"
        )

    def _no_state(self) -> str:
        """The plan has room for the recurrent state of all, unless it chooses how much room there is for tokens."""
        return (
            f"{_wait(self.waiting)} for room for recurrent state: the plan has it for {self.running} requests, which "
            f"run; open the model with more memory, or with kv_tokens={self.pool.blocks * BLOCK_TOKENS} to have it for "
            f"all {self.max_requests} of max_requests in the place of weights that stay"
        )

    def _no_room(self, first: RunningSequence) -> str:
        """Each request needs room for its prompt and all new tokens that it may get."""
        total, used = self.pool.blocks * BLOCK_TOKENS, self.pool.used * BLOCK_TOKENS
        enough = used + sum(_room(one) for one in self._waiting[: self.max_requests - self.running])
        return (
            f"{_wait(self.waiting)} for KV room: need {_room(first)} tokens for the next of them, have "
            f"{total - used} of {total} free while {self.running} run{'s' * (self.running == 1)}; open the model with "
            f"kv_tokens={enough} to let them share passes, or call with lower max_new_tokens"
        )


def _goes_on(piece: Piece) -> bool:
    """Whether it is a token of an answer that gives a token, behind which there will be another; it moves no state."""
    is_answer = len(piece.token_ids) == piece.logit_rows == 1 and piece.start >= len(piece.sequence.prompt_ids)
    return is_answer and piece.state_write < 0 and piece.sequence.goes_on


def _room(sequence: RunningSequence) -> int:
    """The tokens that its KV blocks hold."""
    return blocks_for(sequence.most_tokens) * BLOCK_TOKENS


def _wait(count: int) -> str:
    return "1 request waits" if count == 1 else f"{count} requests wait"


def _take_turns(answering: int, max_tokens: int) -> str:
    return (
        f"{answering} requests take turns: no more share a pass with max_tokens_per_pass={max_tokens}; open the model "
        "with a larger max_tokens_per_pass to let them"
    )
