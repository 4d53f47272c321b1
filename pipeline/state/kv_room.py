"""How many tokens of KV blocks there is room for where no setting says it. Pure, and chosen once.

What counts is tokens per second: the requests that share a pass, by the time that it takes. Room for KV blocks lets
more requests share it; the same bytes would hold weights, which then need not move in any pass. Nothing is measured for
it: bytes stand for time, at rates by which disks, links and memories of today differ. Moving and computing overlap, so
the slowest binds.
"""

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.state.blocks import BLOCK_TOKENS, blocks_for
from pipeline.system.sizes import human_bytes

TYPICAL_TOKENS, TYPICAL_SHARE = 1024, 4
"""What a request is taken to need, prompt and answer, as nothing is known of it: so many tokens, or of a long context a
quarter. Some need more and many less."""
STEPS = 64
"""So many numbers of requests are tried, which takes some milliseconds."""
SENT_RATE = 4
"""How many times as fast as the disk the link to a GPU is."""


@dataclass(frozen=True, slots=True)
class PassBytes:
    """What each pass reads from the disk, and sends to a device that has memory of its own: weights and KV blocks."""

    read: int
    sent: int

    def seconds(self, weights: int, computed_rate: float) -> float:
        """How long a pass with so many bytes of weights in all takes, in seconds of a disk with one byte per second."""
        return max(self.read, self.sent / SENT_RATE, weights / computed_rate)


@dataclass(frozen=True, slots=True)
class KvRoom:
    """The room that KV blocks were given, in tokens and in bytes, and why."""

    tokens: int
    nbytes: int
    why: str

    def __str__(self) -> str:
        return f"{self.tokens:,} tokens in {human_bytes(self.nbytes)}: {self.why}"


@dataclass(frozen=True, slots=True)
class Demand:
    """How many requests may run at a time, how many of them a pass carries, and what one takes, in tokens."""

    requests: int
    sharing: int
    longest: int
    typical: int

    @classmethod
    def of(cls, context_tokens: int, max_requests: int, max_tokens_per_pass: int) -> "Demand":
        """Count what requests of this context take, in whole blocks."""
        typical = min(context_tokens, max(TYPICAL_TOKENS, context_tokens // TYPICAL_SHARE))
        longest, typical = (blocks_for(tokens) * BLOCK_TOKENS for tokens in (context_tokens, typical))
        return cls(max_requests, min(max_requests, max_tokens_per_pass), longest, typical)

    @property
    def most(self) -> int:
        """More than that cannot be used."""
        return self.requests * self.longest

    @property
    def usual(self) -> int:
        """Return what typical requests take, as many as may run."""
        return max(self.longest, self.requests * self.typical)

    def sizes(self) -> list[int]:
        """Return what is tried, in ascending order: room for more and more typical requests, then for longer ones."""
        steps = min(self.requests, STEPS)
        counts = [-(-self.requests * step // steps) for step in range(1, steps + 1)]
        return sorted({max(self.longest, count * one) for one in (self.typical, self.longest) for count in counts})

    def share(self, tokens: int) -> int:
        """How many typical requests share a pass, with so much room."""
        return min(self.sharing, tokens // self.typical)

    def running(self, tokens: int) -> int:
        """How many requests may run with so much room, where each takes room of its own beside it, too."""
        return min(self.requests, max(1, tokens // self.typical))

    def requests_with_room(self, tokens: int) -> str:
        """The requests that have room at a time."""
        if tokens == self.most:
            many = f"{self.requests} requests" if self.requests > 1 else "one request"
            return f"{many} (max_requests) of a whole context, which is all that can be used"
        count = min(self.requests, tokens // self.typical)
        each = max(self.typical, tokens // self.requests)
        return f"{count} of {self.requests} requests (max_requests), at {each:,} tokens each"


def choose_room(
    demand: Demand, weights: int, computed_rate: int, moves: Callable[[int], PassBytes | None]
) -> tuple[int, str]:
    """The tokens that there is room for, and why; for one request of a whole context in any case.

    `weights` are the bytes of all as they are computed with; computing reads them `computed_rate` times as fast as a
    disk. `moves` tells what passes move with room for so many tokens; None where memory does not hold it. Where the
    best costs weights their place, no request gets more room than one of typical length takes; where nothing more moves
    for it, requests get all that they can use.
    """
    if demand.most == demand.longest:
        return demand.most, demand.requests_with_room(demand.most)
    alone, sizes = moves(demand.longest), demand.sizes()
    if alone is not None and moves(demand.most) == alone:
        return demand.most, f"{demand.requests_with_room(demand.most)}{_cost(alone, alone)}"
    fitting = {tokens: found for tokens in sizes if (found := moves(tokens)) is not None}
    if alone is None or max(fitting, default=demand.longest) == demand.longest:
        return demand.longest, "one request of a whole context, the least that works; memory holds no more"
    best = max(fitting, key=lambda tokens: demand.share(tokens) / fitting[tokens].seconds(weights, computed_rate))
    chosen = max(tokens for tokens, found in fitting.items() if found == fitting[best])
    full = "; memory holds no more" if chosen == max(fitting) < demand.usual else ""
    return chosen, f"{demand.requests_with_room(chosen)}{_cost(fitting[chosen], alone)}{full}"


def _cost(chosen: PassBytes, alone: PassBytes) -> str:
    """Say what passes move for it."""
    each = ("reads", chosen.read, alone.read), ("sends", chosen.sent, alone.sent)
    more = [f"{verb} {human_bytes(now)} instead of {human_bytes(was)}" for verb, now, was in each if now > was]
    if not more:
        return "; no more weights move for it"
    return f"; for that a pass {' and '.join(more)}, which a lower max_requests gives back"
