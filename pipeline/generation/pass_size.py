"""How many tokens a pass carries: what memory allows, and how long running requests may wait for prompts.

The first is chosen once, with the memory plan. The second follows from the passes themselves.
"""

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

LEAST_TOKENS = 512
"""The least room for tokens, wherever a model can be opened; a plan may choose more."""
ANSWER_TOKENS = 128
"""A request is assumed to answer with so many tokens: each takes longer where a larger pass displaces weights."""
NEARLY = 1.005
"""A larger pass that saves less time than this factor is not worth its memory."""
LEAST_SECONDS = 0.5
"""Prompts may delay a token by so much in any case."""
AIMED_SHARE = 0.8
"""A pass aims at this share of the allowed delay, since no pass takes exactly as long as the one before."""
ALONE_SHARE = 8
"""While no request waits for a next token, a pass may take so many times as long: a prompt hardly gains by longer
passes, and a request that comes meanwhile has to wait for the end of this one."""
FEWEST_TOKENS = 16
"""Every pass may take so many tokens of prompts, so that prompts go on whatever delay is allowed."""
RECENT_PASSES = 3
"""What a pass takes without prompts is the median of so many, once there are two: no single accident decides."""


@dataclass(frozen=True, slots=True)
class PassSize:
    """Room for so many tokens. Prompts may delay a running request's next token by `max_seconds`; None is no limit.

    `rates` tells with which rates it was chosen.
    """

    tokens: int
    max_seconds: float | None
    rates: str = ""

    def __str__(self) -> str:
        room = f"up to {self.tokens:,} tokens"
        if self.max_seconds is None:
            return f"{room} (max_tokens_per_pass)"
        delay = f"{self.max_seconds:g} s (max_pass_seconds)"
        chosen = f"; reckoned with {self.rates}" if self.rates else ""
        return f"{room}; beside running requests as many as delay their next tokens by at most {delay}{chosen}"


def sizes(context_tokens: int, max_requests: int) -> list[int]:
    """The sizes of which one is chosen, in ascending order: up to a whole prompt, and a token of each request."""
    most = max(context_tokens, max_requests, LEAST_TOKENS)
    doubled = (LEAST_TOKENS << power for power in itertools.count())
    return [*itertools.takewhile(lambda tokens: tokens < most, doubled), most]


def request_seconds(tokens: int, context_tokens: int, sharing: int, pass_seconds: Callable[[int], float]) -> float:
    """What a request costs whose prompt fills the context, where a pass carries so many `tokens`.

    It shares the passes of its answer with others, `sharing` in all; `pass_seconds` are those of a pass that carries so
    many tokens.
    """
    passes = -(-context_tokens // tokens)
    prompt = passes * pass_seconds(-(-context_tokens // passes))
    return prompt + ANSWER_TOKENS / sharing * pass_seconds(sharing)


def choose_size(seconds: dict[int, float]) -> int:
    """The smallest of the sizes with which a request costs about the fewest seconds; it takes the least memory."""
    return min(tokens for tokens, cost in seconds.items() if cost <= NEARLY * min(seconds.values()))


class PassRate:
    """How many tokens of prompts a pass may take while others wait for their next token, by how long passes took.

    A pass that also moves weights is no faster with fewer tokens, up to some number, and slower with more. So with
    more tokens than the last it takes at most so many times as long; with fewer, the seconds by which it takes longer
    than one without prompts shrink at least as much as the tokens do. A few passes come to the most that is allowed.
    """

    def __init__(self, size: PassSize) -> None:
        self._size = size
        self._tokens = 0
        self._took = 0.0
        self._plain_then = 0.0
        self._plain: deque[float] = deque(maxlen=RECENT_PASSES)

    @property
    def _plain_seconds(self) -> float:
        """What a pass takes without prompts; 0 as long as that is not known."""
        return sorted(self._plain)[(len(self._plain) - 1) // 2] if len(self._plain) > 1 else 0.0

    @property
    def _seconds(self) -> float:
        """What so many tokens take by now: since that pass, one without prompts may have come to take longer, or less.

        0 as long as no pass has told.
        """
        if not self._took or not self._plain_then:
            return self._took
        return self._took - self._plain_then + self._plain_seconds

    def most_tokens(self, beside: bool) -> int:
        """Tokens of prompts that the next pass may take, `beside` requests that wait for their next token or alone."""
        if self._size.max_seconds is None:
            return self._size.tokens
        if not self._seconds:
            return min(LEAST_TOKENS, self._size.tokens)
        plain, longer = self._plain_seconds, (AIMED_SHARE if beside else ALONE_SHARE) * self._size.max_seconds
        if self._seconds <= plain + longer:
            times = (plain + longer) / self._seconds
        elif beside and not plain:
            return FEWEST_TOKENS  # that tells what a pass takes without them, and so how many there is time for
        else:
            times = longer / (self._seconds - plain)
        return max(FEWEST_TOKENS, int(min(self._tokens * times, self._size.tokens)))

    def took(self, prompt_tokens: int, seconds: float) -> None:
        """Take note of a pass, or of computing alone.

        Few tokens of prompts tell no more than that more do not take less, unless they were late. Where not
        even one more than the fewest has time, the pass takes so long and not they: while there are always prompts, no
        pass without any tells.
        """
        late = seconds > self._plain_seconds + (self._size.max_seconds or seconds)
        most_seconds = self._plain_seconds + AIMED_SHARE * (self._size.max_seconds or seconds)
        no_more = prompt_tokens <= FEWEST_TOKENS and most_seconds * FEWEST_TOKENS < seconds * (FEWEST_TOKENS + 1)
        asked = self._seconds and not self._plain_seconds  # what more tokens take is known
        if not prompt_tokens or no_more:
            self._plain.append(seconds)
        if not prompt_tokens or (no_more and asked):
            return
        expected = prompt_tokens * self._seconds / self._tokens if self._seconds else seconds
        if prompt_tokens >= self.most_tokens(True) // 2 or seconds <= expected or (late and self._plain_seconds):
            usual = min(seconds, 2 * expected)  # beyond that it is an accident
            self._tokens, self._took = prompt_tokens, max(usual, self._plain_seconds)
            self._plain_then = self._plain_seconds
