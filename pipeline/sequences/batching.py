"""Which requests share the next pass, and how many tokens each brings."""

from collections import Counter, deque
from dataclasses import dataclass

from pipeline.sequences.blocks import BlockPool
from pipeline.sequences.sequence import RunningSequence


@dataclass(frozen=True, slots=True)
class Piece:
    """What one sequence brings to a pass: `token_ids` at positions from `start` on; `samples` if its last is new."""

    sequence: RunningSequence
    start: int
    token_ids: tuple[int, ...]
    samples: bool


class Batcher:
    """Requests that wait for room, and those that run. Requests join and leave between two passes only.

    A request is admitted, in the order of arrival, when the blocks of its worst case are free. `ended` counts by
    outcome those that have left.
    """

    def __init__(self, pool: BlockPool, max_requests: int) -> None:
        self.pool = pool
        self.max_requests = max_requests
        self._waiting: deque[RunningSequence] = deque()
        self._running: deque[RunningSequence] = deque()
        self.ended: Counter[str] = Counter()

    @property
    def wanted(self) -> bool:
        """Whether anybody wants tokens."""
        return any(not sequence.ended for sequence in (*self._waiting, *self._running))

    @property
    def waiting(self) -> int:
        """Requests that have not been admitted yet."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that hold KV blocks."""
        return len(self._running)

    def submit(self, sequence: RunningSequence) -> None:
        """Let a request wait for its turn."""
        self._waiting.append(sequence)

    def fail(self, error: BaseException) -> None:
        """End all requests with an error; call it when no pass runs."""
        for sequence in (*self._waiting, *self._running):
            sequence.fail(error)
        self.retire()

    def retire(self) -> None:
        """Let those go that have ended, and take their blocks back; call it when no pass runs."""
        for sequence in [one for one in (*self._waiting, *self._running) if one.ended]:
            (self._waiting if sequence in self._waiting else self._running).remove(sequence)
            self.pool.give_back(sequence.blocks)
            sequence.blocks = []
            self.ended[sequence.outcome] += 1

    def _admit(self) -> None:
        """Let requests run, the oldest first, for as long as there is room for the next."""
        while self._waiting and len(self._running) < self.max_requests:
            blocks = self.pool.take(self._waiting[0].most_tokens)
            if blocks is None:
                return
            sequence = self._waiting.popleft()
            sequence.blocks = blocks
            self._running.append(sequence)

    def next_pass(self, max_tokens: int) -> list[Piece]:
        """Up to `max_tokens` tokens: one for each that has begun to answer, the rest shared by those that have not.

        So a long prompt delays nobody's next token. Where there are more that answer than tokens, they take turns.
        Call it when somebody wants tokens and no pass runs.
        """
        self.retire()
        self._admit()
        answering = [one for one in self._running if one.waiting_count == 1][:max_tokens]
        tokens = dict.fromkeys(answering, 1)
        left = max_tokens - len(answering)
        prefilling = [one for one in self._running if one.waiting_count > 1][:left]
        for index, sequence in enumerate(sorted(prefilling, key=lambda one: one.waiting_count)):
            share = min(sequence.waiting_count, -(-left // (len(prefilling) - index)))
            tokens[sequence] = share
            left -= share
        for sequence in answering:
            self._running.remove(sequence)
            self._running.append(sequence)
        return [_piece(sequence, count) for sequence, count in tokens.items() if count]


def _piece(sequence: RunningSequence, count: int) -> Piece:
    return Piece(sequence, sequence.cached_tokens, sequence.waiting_tokens(count), count == sequence.waiting_count)
