"""The sequences of a section on a node, as far as the coordinator has told of them."""

from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

import numpy as np

from pipeline.cluster.orders import PassOrder, PieceOrder, SequenceOrder
from pipeline.errors import PenstockError
from pipeline.generation.batching import Piece
from pipeline.generation.grammar import GrammarState
from pipeline.generation.sampling import Sampler
from pipeline.generation.sequence import RunningSequence

if TYPE_CHECKING:
    from numpy.typing import NDArray


class ToldGrammar(GrammarState):
    """What the grammar of an answer, which the coordinator follows, allows next: a bit for each token."""

    def __init__(self, allowed: bytes) -> None:
        self._allowed = np.frombuffer(allowed, np.uint8)
        self.complete = False

    def allowed(self) -> "NDArray[np.uint8]":
        """The bits, the first token's lowest in the first byte."""
        return self._allowed

    def took(self, token_id: int) -> None:
        """Nothing to do: the next order brings other bits."""


class ToldSequence:
    """What a pass, a cache and a sampler ask of a sequence. Of one that has `ended` this pass computes no more."""

    def __init__(self, told: SequenceOrder, vocabulary_size: int) -> None:
        self.number = told.number
        self.prompt_ids = told.prompt_ids
        self.blocks = told.blocks.tolist()
        self.sampler = Sampler(told.parameters, told.prompt_ids, vocabulary_size, told.sample)
        self.ended = False
        self.error: PenstockError | None = None
        self.take(told.token_ids)

    @property
    def scored(self) -> bool:
        """Whether what is computed of its prompt is to give log-probabilities."""
        return self.sampler.prompt_logprobs is not None and not self.sampler.token_ids

    def take(self, token_ids: "array[int]") -> None:
        """Take note of tokens of its answer that the coordinator has accepted; each uses up its random number."""
        for token_id in token_ids:
            self.sampler.skip(token_id)

    def fail(self, error: PenstockError) -> None:
        """End it with an error, which the coordinator is told."""
        if not self.ended:
            self.ended, self.error = True, error


class ToldSequences:
    """All of them, by number. What they are follows from the orders alone, in their order."""

    def __init__(self, vocabulary_size: int) -> None:
        self._vocabulary_size = vocabulary_size
        self._sequences: dict[int, ToldSequence] = {}

    def pieces(self, order: PassOrder) -> list[Piece]:
        """The pieces of a pass, of the sequences that there are from this order on."""
        self._end(order.gone)
        for told in order.new:
            self._sequences[told.number] = ToldSequence(told, self._vocabulary_size)
        return [self._piece(one) for one in order.pieces]

    def withdraw(self, numbers: Iterable[int]) -> None:
        """Compute no more of these, whose callers have gone; the next order does not name them."""
        for number in numbers:
            if (sequence := self._sequences.get(number)) is not None:
                sequence.ended = True

    def forget(self) -> None:
        """Drop all: the coordinator tells of those anew that go on."""
        self._end([*self._sequences])

    def _end(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            if (sequence := self._sequences.pop(number, None)) is not None:
                sequence.sampler.end()

    def _piece(self, told: PieceOrder) -> Piece:
        sequence = self._sequences[told.number]
        sequence.ended, sequence.error = False, None
        answered = told.start + len(told.token_ids) - len(sequence.prompt_ids)
        known = len(sequence.sampler.token_ids)
        if (new := answered - known) > 0:
            sequence.take(told.token_ids[len(told.token_ids) - new :])
        if told.allowed is not None:
            sequence.sampler.keep_to(ToldGrammar(told.allowed))
        token_ids = tuple(told.token_ids)
        states = told.state_read, told.state_write, told.snapshots
        piece_of = cast("RunningSequence", sequence)  # which has all that is asked of one here
        return Piece(piece_of, told.start, token_ids, told.logit_rows, told.rope_length, *states)
