"""One request from prompt to text."""

import asyncio
from array import array
from collections.abc import Callable, Sequence
from typing import Final, Literal, TypeAlias, cast

from pipeline.errors import RequestError
from pipeline.generation.chunks import Chunk, Output, PromptLogprobs
from pipeline.generation.parameters import SamplingParameters
from pipeline.generation.sampling import Choice, Sampler
from pipeline.state.state_slots import HeldState
from pipeline.text.detokenizer import Detokenizer
from pipeline.text.stops import StopSearch, StopStrings

MOST_UNREAD = 64
"""Chunks that a stream may hold unread: more than come while a reader sends one off, and some megabytes where each has
a thousand log-probabilities."""

State: TypeAlias = Literal["waiting", "running", "interrupted", "finished", "cancelled", "failed"]
"""A request waits for its first turn, then runs: it holds KV blocks. Interrupted, it has lost them and waits again."""
ENDED: Final = ("finished", "cancelled", "failed")
"""The states in which nothing more is computed."""


class RunningSequence:
    """The state of one sample: its tokens, how many of them are in the KV cache, and the unread chunks of its call.

    `earlier` are the samples of its call before it, and `choose_rope_length` gives the `rope_length` for a number of
    tokens.

    Attributes:
        state: where it stands; whether it is also `paused` or `held_back` is found anew for each pass.
        priority: of sequences that wait, the interrupted go first, then those with the lowest number.
        cached_tokens: how many of its tokens are in the KV cache; `found_tokens` were when it was first admitted.
        blocks: the KV blocks that it holds. Those that are full, others of its `scope` can use.
        digests: by these its full blocks are looked up; the prefix cache keeps them here.
        held_state: its slots of recurrent state; None while it has none.
        rope_length: the length for which its cached keys were rotated.
        logit_rows: of how many of its last tokens a pass computes logits; a token is chosen from the last of them.
        most_unread: it pauses while so many chunks of its call wait for a reader; None never pauses it.
    """

    def __init__(
        self,
        prompt_ids: "array[int]",
        parameters: SamplingParameters,
        stop_ids: frozenset[int],
        detokenizer: Detokenizer | None,
        vocabulary_size: int,
        *,
        scope: bytes | None = None,
        priority: int = 0,
        earlier: Sequence["RunningSequence"] = (),
        choose_rope_length: Callable[[int], int] = lambda tokens: 0,
    ) -> None:
        self.prompt_ids = prompt_ids
        self.token_ids: list[int] = []
        self.cached_tokens = self.found_tokens = 0
        self.blocks: list[int] = []
        self.held_state: HeldState | None = None
        self.digests: list[bytes] = []
        self.rope_length = choose_rope_length(len(self.prompt_ids))
        self.priority = priority
        self.logit_rows = min(1, parameters.max_new_tokens)
        self.most_unread: int | None = None
        self.state: State = "waiting"
        self.sampler = Sampler(parameters, self.prompt_ids, vocabulary_size, len(earlier))
        self._scope = scope
        self._choose_rope_length = choose_rope_length
        self._earlier = tuple(earlier)
        self._parameters = parameters
        self._stop_ids = stop_ids
        self._detokenizer = detokenizer
        self.stop_strings: StopStrings = earlier[0].stop_strings if earlier else StopStrings(parameters.stop)
        self._stops = StopSearch(self.stop_strings)
        self._unread: asyncio.Queue[Chunk | BaseException] = earlier[0]._unread if earlier else asyncio.Queue()
        self._prompt_logprobs: list[dict[int, float] | None] = earlier[0]._prompt_logprobs if earlier else []

    @property
    def ended(self) -> bool:
        """Whether nothing more is to be computed."""
        return self.state in ENDED

    @property
    def paused(self) -> bool:
        """Whether it waits until its caller has read some of its chunks."""
        return not self.ended and self.most_unread is not None and self._unread.qsize() >= self.most_unread

    @property
    def active(self) -> bool:
        """Whether its next token is to be computed: it has neither ended nor paused."""
        return not self.ended and not self.paused

    @property
    def goes_on(self) -> bool:
        """Whether it will want the token behind the one that is computed now, unless that ends it."""
        is_read = self.most_unread is None or self._unread.qsize() + len(self._earlier) + 1 < self.most_unread
        wants = not self.ended and is_read and len(self.token_ids) + 1 < self._parameters.max_new_tokens
        return wants and not self._outgrows_next

    @property
    def outgrown(self) -> bool:
        """Whether its keys must be rotated for another length than they were, and so all be computed anew."""
        return self._choose_rope_length(self._length) != self.rope_length

    @property
    def scope(self) -> bytes | None:
        """The scope in which it shares blocks; None where its next token rotates all keys anew: no block fits then."""
        return None if self._outgrows_next else self._scope

    @property
    def scored(self) -> bool:
        """Whether what is computed of its prompt is to give log-probabilities."""
        return self.sampler.prompt_logprobs is not None and not self.token_ids

    @property
    def computes_prompt(self) -> bool:
        """Whether it computes all of its prompt, whatever is cached: other samples have the scores of the first."""
        return self.scored and not self._earlier

    def uncache(self) -> None:
        """Forget what is cached of it; keys that are computed from now on are rotated for its present length."""
        self.cached_tokens = 0
        if self.outgrown:
            self.rope_length, self.digests = self._choose_rope_length(self._length), []

    @property
    def most_tokens(self) -> int:
        """How many positions it can come to occupy."""
        return len(self.prompt_ids) + self._parameters.max_new_tokens

    def waiting_tokens(self, most: int) -> tuple[int, ...]:
        """The tokens that the next pass must compute: at most `most` of those that are not in the KV cache."""
        return self.tokens(self.cached_tokens, self.cached_tokens + most)

    def tokens(self, begin: int, end: int) -> tuple[int, ...]:
        """The tokens at positions [begin, end), of prompt and answer, as far as they are known."""
        prompt = len(self.prompt_ids)
        return (*self.prompt_ids[begin:end], *self.token_ids[max(0, begin - prompt) : max(0, end - prompt)])

    @property
    def waiting_count(self) -> int:
        """How many tokens are not in the KV cache yet."""
        return self._length - self.cached_tokens

    @property
    def answers(self) -> bool:
        """Whether all of its tokens but the newest are cached, so that the next pass gives it another one."""
        return self.cached_tokens == self._length - 1

    @property
    def _length(self) -> int:
        return len(self.prompt_ids) + len(self.token_ids)

    @property
    def _outgrows_next(self) -> bool:
        return self._choose_rope_length(self._length + 1) != self.rope_length

    @property
    def held_back(self) -> bool:
        """Whether it had better wait, because an earlier sample has still to compute the prompt that they share."""
        if self._outgrows_next:
            return False
        computed = any(one.cached_tokens >= len(one.prompt_ids) for one in self._earlier)
        return not computed and any(not one.ended for one in self._earlier)

    def accept(self, choice: Choice) -> None:
        """Take the token that the last pass chose, and queue its chunk; an error ends this request alone.

        It was chosen from the last of the rows of logits that the sequence asked for.
        """
        try:
            self._accept(choice)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # bindings to other languages raise some that are no Exception
            self.fail(RequestError(f"token {choice.token_id} has no text: {type(error).__name__}: {error}"))

    def _accept(self, choice: Choice) -> None:
        self.token_ids.append(choice.token_id)
        self.sampler.took(choice.token_id)
        text, reason = "", None
        if choice.token_id in self._stop_ids:
            reason = "stop"
        elif self._detokenizer is not None:
            text, stopped = self._stops.push(self._detokenizer.push(choice.token_id))
            reason = "stop" if stopped or self.sampler.complete else None
        if reason is None and len(self.token_ids) >= self._parameters.max_new_tokens:
            reason = "length"
        if reason is not None:
            rest, stopped = self._unfinished_text()
            text, reason = text + rest, "stop" if stopped else reason
            self.state = "finished"
        self._tell(text, (choice.token_id,), reason, choice.logprobs)

    def end_without_answer(self) -> None:
        """End, if no token is asked for, when all of the prompt is computed."""
        if not self.ended and not self._parameters.max_new_tokens and not self.waiting_count:
            self.state = "finished"
            self._tell("", (), "length", None)

    def _tell(
        self, text: str, token_ids: tuple[int, ...], reason: str | None, logprobs: dict[int, float] | None
    ) -> None:
        of_prompt = None if len(self.token_ids) > 1 else self._logprobs_of_prompt()
        of_call = len(self._earlier), len(self.prompt_ids), self.found_tokens, of_prompt
        self._unread.put_nowait(Chunk(text, token_ids, reason, logprobs, *of_call))

    def score(self, first: int, found: list[dict[int, float]] | RequestError) -> None:
        """Take the log-probabilities of tokens of its prompt from position `first` on, or what ends it."""
        if isinstance(found, RequestError):
            self.fail(found)
        elif not self.ended:
            self._prompt_logprobs += [None] * (len(self.prompt_ids) - len(self._prompt_logprobs))
            self._prompt_logprobs[first : first + len(found)] = found

    def fail(self, error: BaseException) -> None:
        """End the request with an error, which its caller gets."""
        if not self.ended:
            self.state = "failed"
            self._unread.put_nowait(error)

    def cancel(self) -> None:
        """End the request because its caller has gone."""
        if not self.ended:
            self.state = "cancelled"

    async def next_chunk(self) -> Chunk:
        """The next chunk of any sample of its call; raises what `fail` was given."""
        chunk = await self._unread.get()
        if isinstance(chunk, BaseException):
            raise chunk
        return chunk

    def output(self, chunks: Sequence[Chunk]) -> Output:
        """What its chunks are together."""
        logprobs = tuple(chunk.logprobs for chunk in chunks if chunk.logprobs is not None)
        prompt_ids = cast("tuple[int, ...]", self.prompt_ids)  # any sequence: see `_tuple_when_asked`
        text, reason = "".join(chunk.text for chunk in chunks), chunks[-1].finish_reason or ""
        told = logprobs or None, self.found_tokens, chunks[0].prompt_logprobs
        return Output(text, tuple(self.token_ids), prompt_ids, reason, *told)

    def _logprobs_of_prompt(self) -> PromptLogprobs | None:
        if self.sampler.prompt_logprobs is None:
            return None
        return tuple(self._prompt_logprobs or [None])  # of a prompt of one token there are none

    def _unfinished_text(self) -> tuple[str, bool]:
        """The text that waited for more, now that nothing follows, and whether a stop string cut it."""
        if self._detokenizer is None:
            return "", False
        text, stopped = self._stops.push(self._detokenizer.flush())
        return (text, True) if stopped else (text + self._stops.flush(), False)
